// Package proxy carries what packet rules cannot: connections to ::1, which
// the kernel routes nowhere else, and those over IPv6 to containers that have
// IPv4 only. It lives in this process and knows no containers.
package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/berth-project/berth/core/network"
)

// Proxy implements core's network.Proxy.
type Proxy struct {
	mu   sync.Mutex
	open map[listening]func()
}

// listening is where the proxy listens.
type listening struct {
	proto string
	at    netip.AddrPort
}

// New makes a Proxy that serves nothing yet.
func New() *Proxy { return &Proxy{open: map[listening]func(){}} }

// wanted tells where a rule needs the proxy.
func wanted(r network.Rule) (listening, bool) {
	if !r.HostIP.Is6() || r.Proto != "tcp" && r.Proto != "udp" {
		return listening{}, false
	}
	at := r.HostIP
	if r.To.Addr().Is6() {
		// The kernel serves all but its own loopback.
		if !at.IsUnspecified() && !at.IsLoopback() {
			return listening{}, false
		}
		at = netip.IPv6Loopback()
	}
	return listening{r.Proto, netip.AddrPortFrom(at, r.HostPort)}, true
}

// Serve listens for the rules that need it.
func (p *Proxy) Serve(rules []network.Rule) error {
	var errs []error
	for _, r := range rules {
		w, ok := wanted(r)
		if !ok {
			continue
		}
		var stop func()
		var err error
		if w.proto == "udp" {
			stop, err = serveUDP(w.at, r.To)
		} else {
			stop, err = serveTCP(w.at, r.To)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.mu.Lock()
		p.open[w] = stop
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Stop ends listening; TCP connections that are open go on.
func (p *Proxy) Stop(rules []network.Rule) {
	for _, r := range rules {
		w, ok := wanted(r)
		if !ok {
			continue
		}
		p.mu.Lock()
		stop := p.open[w]
		delete(p.open, w)
		p.mu.Unlock()
		if stop != nil {
			stop()
		}
	}
}

// Close stops all.
func (p *Proxy) Close() {
	p.mu.Lock()
	open := p.open
	p.open = map[listening]func(){}
	p.mu.Unlock()
	for _, stop := range open {
		stop()
	}
}

// dial reaches a container.
func dial(proto string, to netip.AddrPort) (net.Conn, error) {
	return net.DialTimeout(proto, to.String(), dialTimeout)
}
