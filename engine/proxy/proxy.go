// Package proxy carries TCP connections to ::1 into containers: the kernel
// translates no packets from there. Everything else goes by packet rules.
package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/berth-project/berth/core/network"
)

// Proxy implements core's network.Proxy.
type Proxy struct {
	mu   sync.Mutex
	open map[uint16]net.Listener
}

// New makes a Proxy that serves nothing yet.
func New() *Proxy { return &Proxy{open: map[uint16]net.Listener{}} }

// wanted are the rules that ::1 can reach.
func wanted(r network.Rule) bool {
	return r.Proto == "tcp" && (r.HostIP == netip.IPv6Unspecified() || r.HostIP == netip.IPv6Loopback())
}

// Serve listens for the rules that need it.
func (p *Proxy) Serve(rules []network.Rule) error {
	var errs []error
	for _, r := range rules {
		if !wanted(r) {
			continue
		}
		l, err := net.ListenTCP("tcp6", &net.TCPAddr{IP: net.IPv6loopback, Port: int(r.HostPort)})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.mu.Lock()
		p.open[r.HostPort] = l
		p.mu.Unlock()
		go accept(l, r.To.String())
	}
	return errors.Join(errs...)
}

// Stop ends listening; connections that are open go on.
func (p *Proxy) Stop(rules []network.Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rules {
		if l := p.open[r.HostPort]; wanted(r) && l != nil {
			_ = l.Close()
			delete(p.open, r.HostPort)
		}
	}
}

// Close stops all.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for port, l := range p.open {
		_ = l.Close()
		delete(p.open, port)
	}
}

func accept(l net.Listener, to string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go join(c.(*net.TCPConn), to)
	}
}

func join(c *net.TCPConn, to string) {
	defer c.Close()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	d := conn.(*net.TCPConn)
	defer d.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(d, c)
		_ = d.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(c, d)
	_ = c.CloseWrite()
	<-done
}
