// Package resolver serves DNS at 127.0.0.11 inside network namespaces. It
// answers what core's names know and asks other servers for the rest.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/network"
)

// Limits of the resolver.
const (
	ttl          = 600 // seconds, as docker's
	queryTimeout = 4 * time.Second
	maxQueries   = 1024 // of one sandbox at once
	maxAnswers   = 256  // addresses in one answer
	idleTimeout  = 8 * time.Second
)

// Resolver implements core's network.Resolver.
type Resolver struct {
	log      *slog.Logger
	redirect func(ns *os.File, udp, tcp uint16) error

	mu   sync.Mutex
	open map[string]*server
}

// server is the resolver of one sandbox.
type server struct {
	ns       *os.File
	cancel   func() // ends the queries under way
	udp, tcp *dns.Server
	done     sync.WaitGroup
}

// New makes a Resolver. redirect sends a namespace's port 53 of 127.0.0.11 to
// the ports that are served, so that a container may use port 53 itself.
func New(log *slog.Logger, redirect func(ns *os.File, udp, tcp uint16) error) *Resolver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Resolver{log: log, redirect: redirect, open: map[string]*server{}}
}

// Serve begins to answer in the namespace mounted at path.
func (r *Resolver) Serve(sandbox, path string, names network.Names) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	packets, stream, err := listen(ns)
	if err != nil {
		return errors.Join(fmt.Errorf("listen inside the sandbox: %w", err), ns.Close())
	}
	udp, tcp := packets.LocalAddr().(*net.UDPAddr).Port, stream.Addr().(*net.TCPAddr).Port
	if err := r.redirect(ns, uint16(udp), uint16(tcp)); err != nil {
		return errors.Join(err, packets.Close(), stream.Close(), ns.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &handler{ctx: ctx, sandbox: sandbox, names: names, log: r.log, ns: ns, slots: make(chan struct{}, maxQueries)}
	idle := func() time.Duration { return idleTimeout }
	s := &server{ns: ns, cancel: cancel, udp: &dns.Server{PacketConn: packets, Handler: h, UDPSize: dns.DefaultMsgSize}, tcp: &dns.Server{Listener: stream, Handler: h, IdleTimeout: idle}}
	for _, d := range []*dns.Server{s.udp, s.tcp} {
		s.done.Add(1)
		go func() {
			defer s.done.Done()
			_ = d.ActivateAndServe() // ends when the socket is closed
		}()
	}
	r.mu.Lock()
	old := r.open[sandbox]
	r.open[sandbox] = s
	r.mu.Unlock()
	old.stop()
	return nil
}

// within runs f with a thread that is in the namespace and ends after it.
func within(ns *os.File, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		failed <- f()
	}()
	return <-failed
}

// listen opens sockets in a namespace.
func listen(ns *os.File) (packets net.PacketConn, stream net.Listener, err error) {
	err = within(ns, func() error {
		if packets, err = net.ListenPacket("udp4", "127.0.0.11:0"); err != nil {
			return err
		}
		if stream, err = net.Listen("tcp4", "127.0.0.11:0"); err != nil {
			return errors.Join(err, packets.Close())
		}
		return nil
	})
	return packets, stream, err
}

// Stop ends answering for a sandbox.
func (r *Resolver) Stop(sandbox string) {
	r.mu.Lock()
	s := r.open[sandbox]
	delete(r.open, sandbox)
	r.mu.Unlock()
	s.stop()
}

func (s *server) stop() {
	if s == nil {
		return
	}
	s.cancel()
	_ = s.udp.PacketConn.Close()
	_ = s.tcp.Listener.Close()
	s.done.Wait()
	_ = s.ns.Close()
}
