package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/container"
)

// fallbackServers are asked where the host has none that containers can
// reach, as docker does.
func fallbackServers() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{8, 8, 8, 8}), netip.AddrFrom4([4]byte{8, 8, 4, 4})}
}

// resolvConf is a resolv.conf (5).
type resolvConf struct {
	servers         []netip.Addr
	search, options []string
}

func parseResolv(text []byte) (r resolvConf) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				r.servers = append(r.servers, a)
			}
		case "search", "domain":
			r.search = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

func (s *Service) hostText() []byte {
	if s.o.HostResolv == nil {
		return nil
	}
	return s.o.HostResolv()
}

func (s *Service) hostResolv() resolvConf { return parseResolv(s.hostText()) }

func firstOf(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// resolv writes /etc/resolv.conf: the engine's resolver on user-defined
// networks, else the host's servers that a container can reach.
func (s *Service) resolv(c container.Container, custom bool) []byte {
	servers := c.Spec.DNS
	if len(servers) == 0 {
		servers = s.o.Defaults.Servers
	}
	search, options := firstOf(c.Spec.DNSSearch, s.o.Defaults.Search), firstOf(c.Spec.DNSOptions, s.o.Defaults.Options)
	inHost := mode(c.Spec.NetworkMode) == "host"
	if inHost && len(servers) == 0 && len(search) == 0 && len(options) == 0 {
		return s.hostText()
	}
	host := s.hostResolv()
	search, options = slices.Clone(firstOf(search, host.search)), slices.Clone(firstOf(options, host.options))
	if len(servers) == 0 {
		servers = host.servers
		if !inHost {
			servers = slices.DeleteFunc(slices.Clone(servers), netip.Addr.IsLoopback)
		}
		if len(servers) == 0 && !inHost {
			servers = fallbackServers()
		}
	}
	if custom {
		servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 11})}
		if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			options = append(options, "ndots:0")
		}
	}
	var b bytes.Buffer
	b.WriteString("# Written by Berth.\n")
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if len(search) > 0 && !(len(search) == 1 && search[0] == ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}
