// Package proxy carries what packet rules cannot: connections to ::1, which
// the kernel routes nowhere else, and those over IPv6 to containers that have
// IPv4 only. It lives in this process and knows no containers.
package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/berth-project/berth/core/network"
)

// Proxy implements core's network.Proxy.
type Proxy struct {
	mu   sync.Mutex
	open map[listening]*served
}

// listening is where the proxy listens.
type listening struct {
	proto string
	at    netip.AddrPort
}

// served is one place and where it leads now.
type served struct {
	to   atomic.Pointer[netip.AddrPort]
	stop func()
}

// New makes a Proxy that serves nothing yet.
func New() *Proxy { return &Proxy{open: map[listening]*served{}} }

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

// Serve listens for the rules that need it. What is served already leads
// where the new rule says.
func (p *Proxy) Serve(rules []network.Rule) error {
	var errs []error
	for _, r := range rules {
		w, ok := wanted(r)
		if !ok {
			continue
		}
		p.mu.Lock()
		one := p.open[w]
		p.mu.Unlock()
		if one != nil {
			one.to.Store(&r.To)
			continue
		}
		one = &served{}
		one.to.Store(&r.To)
		var err error
		if w.proto == "udp" {
			one.stop, err = serveUDP(w.at, &one.to)
		} else {
			one.stop, err = serveTCP(w.at, &one.to)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.mu.Lock()
		p.open[w] = one
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Stop ends listening, unless the place leads elsewhere by now; TCP connections
// that are open go on.
func (p *Proxy) Stop(rules []network.Rule) {
	for _, r := range rules {
		w, ok := wanted(r)
		if !ok {
			continue
		}
		p.mu.Lock()
		one := p.open[w]
		if one != nil && *one.to.Load() != r.To {
			one = nil
		}
		if one != nil {
			delete(p.open, w)
		}
		p.mu.Unlock()
		if one != nil {
			one.stop()
		}
	}
}

// Close stops all.
func (p *Proxy) Close() {
	p.mu.Lock()
	open := p.open
	p.open = map[listening]*served{}
	p.mu.Unlock()
	for _, one := range open {
		one.stop()
	}
}

// dial reaches a container.
func dial(proto string, to netip.AddrPort) (net.Conn, error) {
	return net.DialTimeout(proto, to.String(), dialTimeout)
}
