// Package resolver serves DNS at 127.0.0.11 inside network namespaces. It
// answers what core's names know and asks the host's servers for the rest.
package resolver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
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
)

// Resolver implements core's network.Resolver.
type Resolver struct {
	log      *slog.Logger
	redirect func(ns *os.File, udp, tcp uint16) error

	mu   sync.Mutex
	open map[string]*server
}

type server struct {
	udp, tcp *dns.Server
	done     sync.WaitGroup
}

// New makes a Resolver. redirect sends a namespace's port 53 of 127.0.0.11 to
// the ports that are served, so that a container may use port 53 itself.
func New(log *slog.Logger, redirect func(ns *os.File, udp, tcp uint16) error) *Resolver {
	return &Resolver{log: log, redirect: redirect, open: map[string]*server{}}
}

// Serve begins to answer in the namespace mounted at path.
func (r *Resolver) Serve(sandbox, path string, names network.Names) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	packets, stream, err := listen(ns)
	if err != nil {
		return fmt.Errorf("listen inside the sandbox: %w", err)
	}
	udp, tcp := packets.LocalAddr().(*net.UDPAddr).Port, stream.Addr().(*net.TCPAddr).Port
	if err := r.redirect(ns, uint16(udp), uint16(tcp)); err != nil {
		_, _ = packets.Close(), stream.Close()
		return err
	}
	h := &handler{sandbox: sandbox, names: names, log: r.log}
	s := &server{udp: &dns.Server{PacketConn: packets, Handler: h}, tcp: &dns.Server{Listener: stream, Handler: h}}
	for _, d := range []*dns.Server{s.udp, s.tcp} {
		s.done.Add(1)
		go func() {
			defer s.done.Done()
			_ = d.ActivateAndServe()
		}()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[sandbox] = s
	return nil
}

// listen opens sockets in a namespace; the thread that went there ends.
func listen(ns *os.File) (packets net.PacketConn, stream net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		if packets, err = net.ListenPacket("udp4", "127.0.0.11:0"); err != nil {
			return
		}
		if stream, err = net.Listen("tcp4", "127.0.0.11:0"); err != nil {
			_ = packets.Close()
		}
	}()
	<-done
	return packets, stream, err
}

// Stop ends answering for a sandbox.
func (r *Resolver) Stop(sandbox string) {
	r.mu.Lock()
	s := r.open[sandbox]
	delete(r.open, sandbox)
	r.mu.Unlock()
	if s == nil {
		return
	}
	_ = s.udp.PacketConn.Close()
	_ = s.tcp.Listener.Close()
	s.done.Wait()
}

type handler struct {
	sandbox string
	names   network.Names
	log     *slog.Logger
}

// ServeDNS answers one query.
func (h *handler) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(q, dns.RcodeFormatError))
		return
	}
	question := q.Question[0]
	if m := h.own(q, question); m != nil {
		_ = w.WriteMsg(m)
		return
	}
	_ = w.WriteMsg(h.forward(q, w.LocalAddr().Network()))
}

// own answers names and addresses of containers; nil where it knows none.
func (h *handler) own(q *dns.Msg, question dns.Question) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	switch question.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		addresses, known := h.names.Lookup(h.sandbox, question.Name)
		if !known {
			return nil
		}
		for _, a := range addresses {
			header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ttl}
			switch {
			case a.Is4() && question.Qtype == dns.TypeA:
				m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
			case a.Is6() && question.Qtype == dns.TypeAAAA:
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
			}
		}
		// Who asks again gets another first address.
		if n := len(m.Answer); n > 1 {
			k := int(time.Now().UnixNano()/1000) % n
			m.Answer = append(m.Answer[k:], m.Answer[:k]...)
		}
		return m
	case dns.TypePTR:
		a, ok := reverse(question.Name)
		if !ok {
			return nil
		}
		name, known := h.names.Reverse(h.sandbox, a)
		if !known {
			return nil
		}
		m.Answer = []dns.RR{&dns.PTR{Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl}, Ptr: dns.Fqdn(name)}}
		return m
	}
	return nil
}

func reverse(name string) (netip.Addr, bool) {
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(name), ".in-addr.arpa."), ".")
	if len(labels) != 4 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return a, err == nil
}

// forward asks the servers one after the other.
func (h *handler) forward(q *dns.Msg, transport string) *dns.Msg {
	servers := h.names.Upstream(h.sandbox)
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	client := &dns.Client{Net: transport, Timeout: queryTimeout / time.Duration(max(1, len(servers)))}
	for _, s := range servers {
		m, _, err := client.ExchangeContext(ctx, q, s.String())
		if err == nil {
			return m
		}
		h.log.Debug("name server did not answer", "server", s, "error", err)
	}
	m := new(dns.Msg)
	code := dns.RcodeServerFailure
	if len(servers) == 0 {
		code = dns.RcodeNameError
	}
	return m.SetRcode(q, code)
}
