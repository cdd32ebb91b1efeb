package network

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Ephemeral ports that are given where none is asked for (as docker's).
const (
	firstEphemeral = 49153
	lastEphemeral  = 65535
)

type portKey struct {
	proto string
	port  uint16
}

// portTable knows which host ports are given out.
type portTable struct {
	mu   sync.Mutex
	used map[portKey][]netip.Addr // addresses; unspecified is every one
	next uint16
}

func newPortTable() *portTable {
	return &portTable{used: map[portKey][]netip.Addr{}, next: firstEphemeral}
}

func clash(a, b netip.Addr) bool { return a == b || a.IsUnspecified() || b.IsUnspecified() }

// take reserves a port on an address. That no other program has it is tried by binding.
func (t *portTable) take(p container.Publish, ip netip.Addr) (uint16, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.HostPort != 0 && p.HostPortEnd == 0 {
		return p.HostPort, t.reserve(p.Proto, ip, p.HostPort)
	}
	if p.HostPort != 0 {
		for n := int(p.HostPort); n <= int(p.HostPortEnd); n++ {
			if t.reserve(p.Proto, ip, uint16(n)) == nil {
				return uint16(n), nil
			}
		}
		return 0, fault.Internalf("failed to bind host port for %s:%d-%d/%s: no port of the range is free", ip, p.HostPort, p.HostPortEnd, p.Proto)
	}
	for range lastEphemeral - firstEphemeral + 1 {
		n := t.next
		if t.next++; t.next == 0 || t.next < firstEphemeral {
			t.next = firstEphemeral
		}
		if t.reserve(p.Proto, ip, n) == nil {
			return n, nil
		}
	}
	return 0, fault.Internalf("all ports are allocated")
}

func (t *portTable) reserve(proto string, ip netip.Addr, port uint16) error {
	key := portKey{proto, port}
	for _, other := range t.used[key] {
		if clash(other, ip) {
			return fault.Internalf("Bind for %s:%d failed: port is already allocated", ip, port)
		}
	}
	if err := free(proto, ip, port); err != nil {
		return fault.Internalf("failed to bind host port %s:%d/%s: address already in use", ip, port, proto)
	}
	t.used[key] = append(t.used[key], ip)
	return nil
}

// adopt notes a port that an earlier daemon gave out.
func (t *portTable) adopt(b container.Binding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := portKey{b.Proto, b.HostPort}
	t.used[key] = append(t.used[key], b.HostIP)
}

func (t *portTable) give(b container.Binding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := portKey{b.Proto, b.HostPort}
	for i, ip := range t.used[key] {
		if ip == b.HostIP {
			t.used[key] = append(t.used[key][:i:i], t.used[key][i+1:]...)
			break
		}
	}
	if len(t.used[key]) == 0 {
		delete(t.used, key)
	}
}

func free(proto string, ip netip.Addr, port uint16) error {
	address := net.JoinHostPort(ip.String(), fmt.Sprint(port))
	switch proto {
	case "tcp":
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		return l.Close()
	case "udp":
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	return nil // sctp is not bound by the standard library; the rule alone decides
}
