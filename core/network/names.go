package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/container"
)

// hostInternal is the usual name of the host, as containers know it.
const hostInternal = "host.docker.internal"

// portDNS is that of servers of names.
const portDNS = 53

// names answers the resolver.
type names struct{ s *Service }

// Hide has the names that a container shares with others lead to the others
// alone, until it is shown or ends. A name that no other has still leads to it.
func (s *Service) Hide(id container.ID, hidden bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hidden {
		s.hidden[id] = true
	} else {
		delete(s.hidden, id)
	}
}

// Lookup finds the addresses of a name on the networks of one container.
func (n names) Lookup(sandbox, name string) (found []netip.Addr, known bool) {
	s := n.s
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	s.mu.RLock()
	defer s.mu.RUnlock()
	b := s.boxes[container.ID(sandbox)]
	if b == nil {
		return nil, false
	}
	if name == hostInternal && s.outward(b) {
		if g := s.gateway(b.endpoints); !g.IsUnspecified() {
			return []netip.Addr{g}, true
		}
	}
	var hidden []netip.Addr
	for _, e := range b.endpoints {
		st := s.byID[e.NetworkID]
		if st == nil || st.Name == "bridge" {
			continue
		}
		plain := strings.TrimSuffix(name, "."+strings.ToLower(st.Name))
		for _, l := range e.Spec.Links {
			target, alias, ok := strings.Cut(l, ":")
			if ok && strings.EqualFold(alias, plain) {
				plain = strings.ToLower(target)
			}
		}
		for id, m := range st.endpoints {
			if slices.ContainsFunc(m.Endpoint.DNSNames, func(d string) bool { return strings.EqualFold(d, plain) }) {
				known = true
				to := &found
				if s.hidden[id] {
					to = &hidden
				}
				for _, a := range []netip.Prefix{m.Endpoint.IPv4, m.Endpoint.IPv6} {
					if a.IsValid() {
						*to = append(*to, a.Addr())
					}
				}
			}
		}
	}
	if len(found) == 0 {
		found = hidden
	}
	return found, known
}

// Reverse finds the name of an address on the networks of one container.
func (n names) Reverse(sandbox string, a netip.Addr) (string, bool) {
	s := n.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	b := s.boxes[container.ID(sandbox)]
	if b == nil {
		return "", false
	}
	for _, e := range b.endpoints {
		st := s.byID[e.NetworkID]
		if st == nil {
			continue
		}
		for _, m := range st.endpoints {
			if m.Endpoint.IPv4.Addr() == a || m.Endpoint.IPv6.Addr() == a {
				return m.Name + "." + st.Name, true
			}
		}
	}
	return "", false
}

// Upstream gives the servers for other names: the container's or the daemon's,
// asked from inside, or the host's. A container on internal networks alone has none.
func (n names) Upstream(sandbox string) (servers []netip.AddrPort, inside bool) {
	s := n.s
	s.mu.RLock()
	b := s.boxes[container.ID(sandbox)]
	out := b != nil && s.outward(b)
	s.mu.RUnlock()
	if !out {
		return nil, false
	}
	addresses, inside := b.c.Spec.DNS, true
	if len(addresses) == 0 {
		addresses = s.o.Defaults.Servers
	}
	if len(addresses) == 0 {
		addresses, inside = s.hostResolv().servers, false
	}
	for _, a := range addresses {
		servers = append(servers, netip.AddrPortFrom(a, portDNS))
	}
	return servers, inside
}

// outward tells whether a container is on a network that leads out. s.mu is held.
func (s *Service) outward(b *box) bool {
	return slices.ContainsFunc(b.endpoints, func(e container.Endpoint) bool {
		st := s.byID[e.NetworkID]
		return st != nil && !st.Internal
	})
}

// gateway is the host as containers reach it: its address on the default
// bridge, or on a network of theirs where there is none. s.mu is held.
func (s *Service) gateway(endpoints []container.Endpoint) netip.Addr {
	if s.o.HostGateway.IsValid() {
		return s.o.HostGateway
	}
	for _, st := range s.byID {
		if st.Name == "bridge" && len(st.pools) > 0 {
			return st.pools[0].gateway
		}
	}
	for _, e := range endpoints {
		if e.Gateway4.IsValid() {
			return e.Gateway4
		}
	}
	return netip.IPv4Unspecified()
}

// HostGateway is the address that "host-gateway" means; "" where there is none.
func (s *Service) HostGateway() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if a := s.gateway(nil); !a.IsUnspecified() {
		return a.String()
	}
	return ""
}

// hosts writes /etc/hosts as docker does; a container in the host's namespace
// has the host's own, with what is asked for behind it.
func (s *Service) hosts(c container.Container, endpoints []container.Endpoint, host bool) []byte {
	var b bytes.Buffer
	if own := hostsOfHost(); host && len(own) > 0 {
		b.Write(append(bytes.TrimRight(own, "\n"), '\n'))
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, extra := range c.Spec.ExtraHosts {
		name, address, _ := container.CutHost(extra)
		if address == container.HostGateway {
			s.mu.RLock()
			gateway := s.gateway(endpoints)
			s.mu.RUnlock()
			if host {
				gateway = netip.MustParseAddr("127.0.0.1")
			}
			address = gateway.String()
		}
		fmt.Fprintf(&b, "%s\t%s\n", address, name)
	}
	for _, e := range endpoints {
		if e.NetworkName == "bridge" {
			for _, l := range append(slices.Clone(c.Spec.Links), e.Spec.Links...) {
				s.addLink(&b, l)
			}
		}
	}
	for _, e := range endpoints {
		for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
			if a.IsValid() {
				b.WriteString(hostsLine(c, a.Addr()))
			}
		}
	}
	return b.Bytes()
}

func hostsLine(c container.Container, a netip.Addr) string {
	name := c.Spec.Hostname
	if c.Spec.Domainname != "" {
		name = name + "." + c.Spec.Domainname + " " + name
	}
	return fmt.Sprintf("%s\t%s\n", a, name)
}

// addLink writes the line of an old link on the default bridge.
func (s *Service) addLink(b *bytes.Buffer, link string) {
	target, alias, ok := strings.Cut(link, ":")
	if !ok {
		alias = target
	}
	target = strings.TrimPrefix(target, "/")
	if i := strings.LastIndexByte(alias, '/'); i >= 0 {
		alias = alias[i+1:]
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, x := range s.boxes {
		if x.c.Name != target && !strings.HasPrefix(string(id), target) {
			continue
		}
		for _, e := range x.endpoints {
			if e.IPv4.IsValid() {
				fmt.Fprintf(b, "%s\t%s %s %s\n", e.IPv4.Addr(), alias, x.c.Spec.Hostname, x.c.Name)
				return
			}
		}
	}
}
