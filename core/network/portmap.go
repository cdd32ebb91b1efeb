package network

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Ephemeral ports that are given where none is asked for and the host's own
// range ends above them (as docker's).
const (
	firstEphemeral = 49153
	lastEphemeral  = 65535
)

// rangeFile tells which ports the host gives to its own connections.
const rangeFile = "/proc/sys/net/ipv4/ip_local_port_range"

type portKey struct {
	proto string
	port  uint16
}

// portTable knows which host ports are given out.
type portTable struct {
	first, last uint16
	mu          sync.Mutex
	used        map[portKey][]netip.Addr // addresses; unspecified is every one of its family
	next        uint16
}

func newPortTable() *portTable {
	t := &portTable{first: firstEphemeral, last: lastEphemeral, used: map[portKey][]netip.Addr{}}
	if b, err := os.ReadFile(rangeFile); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 {
			first, err1 := strconv.ParseUint(f[0], 10, 16)
			last, err2 := strconv.ParseUint(f[1], 10, 16)
			if err1 == nil && err2 == nil && 0 < first && first <= last {
				t.first, t.last = uint16(first), uint16(last)
			}
		}
	}
	t.next = t.first
	return t
}

func clash(a, b netip.Addr) bool {
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// take reserves one port on all the addresses. That no other program has it is
// tried by binding; the socket is not kept.
func (t *portTable) take(p container.Publish, ips []netip.Addr) (uint16, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.HostPort != 0 && p.HostPortEnd <= p.HostPort {
		return p.HostPort, t.reserve(p.Proto, ips, p.HostPort)
	}
	if p.HostPort != 0 {
		for n := int(p.HostPort); n <= int(p.HostPortEnd); n++ {
			if t.reserve(p.Proto, ips, uint16(n)) == nil {
				return uint16(n), nil
			}
		}
		return 0, fault.Internalf("failed to bind host port for %s:%d-%d/%s: all ports are allocated", ips[0], p.HostPort, p.HostPortEnd, p.Proto)
	}
	for range int(t.last) - int(t.first) + 1 {
		n := t.next
		if t.next++; t.next == 0 || t.next > t.last || t.next < t.first {
			t.next = t.first
		}
		if t.reserve(p.Proto, ips, n) == nil {
			return n, nil
		}
	}
	return 0, fault.Internalf("all ports are allocated")
}

func (t *portTable) reserve(proto string, ips []netip.Addr, port uint16) error {
	key := portKey{proto, port}
	for _, ip := range ips {
		for _, other := range t.used[key] {
			if clash(other, ip) {
				return fault.Internalf("Bind for %s failed: port is already allocated", netip.AddrPortFrom(ip, port))
			}
		}
	}
	for _, ip := range ips {
		if err := free(proto, ip, port); err != nil {
			return fault.Internalf("failed to bind host port %s/%s: %w", netip.AddrPortFrom(ip, port), proto, err)
		}
	}
	t.used[key] = append(t.used[key], ips...)
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

// sockets by protocol: type and number.
var sockets = map[string][2]int{"tcp": {unix.SOCK_STREAM, unix.IPPROTO_TCP}, "udp": {unix.SOCK_DGRAM, unix.IPPROTO_UDP}, "sctp": {unix.SOCK_STREAM, unix.IPPROTO_SCTP}}

// free tells whether no other program has a port, by binding it.
func free(proto string, ip netip.Addr, port uint16) error {
	kind, ok := sockets[proto]
	if !ok {
		return fault.Invalidf("invalid proto: %s", proto)
	}
	domain, address := unix.AF_INET, unix.Sockaddr(nil)
	if ip.Is4() {
		address = &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
	} else {
		domain, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: ip.As16()}
	}
	fd, err := unix.Socket(domain, kind[0]|unix.SOCK_CLOEXEC, kind[1])
	if proto == "sctp" && errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // no program of this host can have it
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if ip.Is6() {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if proto == "tcp" {
		// Connections that are ending do not hold a port.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return unix.Bind(fd, address)
}
