package network

import (
	"math"
	"net/netip"
	"sync"

	"github.com/berth-project/berth/lib/fault"
)

// addressPool gives out the addresses of one subnet. Addresses come back, and
// are given again as late as possible.
type addressPool struct {
	subnet  netip.Prefix
	within  netip.Prefix // where addresses without a wish come from
	gateway netip.Addr

	mu   sync.Mutex
	used map[netip.Addr]bool
	last netip.Addr
}

func newAddressPool(p Pool) (*addressPool, error) {
	a := &addressPool{subnet: p.Subnet, within: p.Range, gateway: p.Gateway, used: map[netip.Addr]bool{}}
	if !a.within.IsValid() {
		a.within = p.Subnet
	}
	if p.Subnet.Addr().Is4() && p.Subnet.Bits() > 30 || p.Subnet.Bits() > 126 {
		return nil, fault.Invalidf("invalid network config:\nsubnet %s is too small", p.Subnet)
	}
	a.used[p.Subnet.Addr()] = true // the network itself
	if p.Subnet.Addr().Is4() {
		a.used[lastOf(p.Subnet)] = true // broadcast
	}
	for _, x := range p.Aux {
		a.used[x] = true
	}
	if !a.gateway.IsValid() {
		a.gateway = p.Subnet.Addr().Next()
		if p.Range.IsValid() && a.used[a.gateway] {
			a.gateway = p.Range.Addr()
		}
		for a.used[a.gateway] {
			a.gateway = a.gateway.Next()
		}
	}
	a.used[a.gateway] = true
	a.last = a.within.Addr().Prev()
	return a, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// after gives the subnet that follows, where there is one.
func after(p netip.Prefix) (netip.Prefix, bool) {
	next := lastOf(p).Next()
	return netip.PrefixFrom(next, p.Bits()), next.IsValid()
}

// take gives out an address: the one wished for, or the next free one.
func (a *addressPool) take(wish netip.Addr) (netip.Prefix, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if wish.IsValid() {
		if a.used[wish] {
			return netip.Prefix{}, fault.Forbiddenf("Address already in use")
		}
		a.used[wish] = true
		return netip.PrefixFrom(wish, a.subnet.Bits()), nil
	}
	first := a.within.Addr()
	at := a.last
	for range 1 << 20 {
		if at = at.Next(); !at.IsValid() || !a.within.Contains(at) {
			at = first
		}
		if !a.used[at] {
			a.used[at], a.last = true, at
			return netip.PrefixFrom(at, a.subnet.Bits()), nil
		}
		if at == a.last {
			break
		}
	}
	return netip.Prefix{}, fault.Forbiddenf("no available IPv4 addresses on this network's address pools: %s", a.subnet)
}

func (a *addressPool) give(p netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p != a.gateway {
		delete(a.used, p)
	}
}

// use counts the addresses that are taken and those that are left.
func (a *addressPool) use() Use {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := Use{Subnet: a.subnet, Taken: uint64(len(a.used)), Free: math.MaxUint64}
	if bits := a.within.Addr().BitLen() - a.within.Bits(); bits < 64 {
		u.Free = 1 << bits
	}
	for x := range a.used {
		if a.within.Contains(x) {
			u.Free--
		}
	}
	return u
}
