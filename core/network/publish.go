package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// publishPorts reserves host ports and lets their packets in.
func (s *Service) publishPorts(b *box) error {
	way4, way6 := s.ways(b)
	out := way4
	if out == nil {
		out = way6
	}
	if out != nil && len(b.ports) == 0 {
		if err := s.reserve(b, *out); err != nil {
			return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", b.c.Name, out.EndpointID, err)
		}
	}
	ports := s.portRules(b, way4, way6)
	r := Rules{Guards: b.rules.Guards, Ports: ports}
	b.rules = r // also where it fails: taking back what is not there is no error
	if err := s.let(r); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	s.proxy(b)
	return nil
}

// reserve takes the host ports that a container asks for.
func (s *Service) reserve(b *box, e container.Endpoint) (err error) {
	st := s.state(e.NetworkID)
	if st == nil {
		return fault.NotFound("network", e.NetworkName)
	}
	if st.Driver != driverBridge {
		return nil // such containers are on the wire themselves
	}
	from := s.predecessor(b.id)
	defer func() {
		if err != nil {
			s.unpublish(b)
		}
	}()
	for _, p := range b.wantedPorts() {
		ips := s.hostAddresses(st, p, e)
		if len(ips) == 0 || from != nil && len(from.holds(p, ips)) > 0 {
			continue
		}
		port, err := s.ports.take(p, ips)
		if err != nil {
			return err
		}
		for _, ip := range ips {
			binding := container.Binding{Port: p.Port, HostIP: ip, HostPort: port}
			b.held, b.ports = append(b.held, binding), append(b.ports, binding)
		}
	}
	return nil
}

// wantedPorts are those that a container asks for.
func (b *box) wantedPorts() []container.Publish {
	wanted := slices.Clone(b.c.Spec.Publish)
	if b.c.Spec.PublishAll {
		for _, p := range b.c.Spec.Expose {
			if !slices.ContainsFunc(wanted, func(w container.Publish) bool { return w.Port == p }) {
				wanted = append(wanted, container.Publish{Port: p})
			}
		}
	}
	return wanted
}

// hostAddresses are those that a port is published on.
func (s *Service) hostAddresses(st *state, p container.Publish, e container.Endpoint) []netip.Addr {
	ip := p.HostIP
	if !ip.IsValid() {
		ip = s.o.Bridge.HostIP
		if text := st.Options[optionHostIP]; text != "" {
			ip, _ = netip.ParseAddr(text) // checked when the network was made
		}
	}
	all := []netip.Addr{ip}
	if !ip.IsValid() || ip == netip.IPv4Unspecified() && !p.HostIP.IsValid() {
		all = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	return slices.DeleteFunc(all, func(a netip.Addr) bool {
		if a.Is4() {
			return !e.IPv4.IsValid() // nothing translates IPv4 to IPv6
		}
		return !s.o.Links.HasIPv6() || !e.IPv6.IsValid() && s.o.Proxy == nil
	})
}

// portRules says where each published port leads now.
func (s *Service) portRules(b *box, way4, way6 *container.Endpoint) (rules []Rule) {
	for _, p := range b.ports {
		var to netip.Addr
		var via *container.Endpoint
		if way4 != nil && way4.IPv4.IsValid() {
			to, via = way4.IPv4.Addr(), way4
		}
		if p.HostIP.Is6() && way6 != nil && way6.IPv6.IsValid() {
			to, via = way6.IPv6.Addr(), way6
		}
		if via == nil || p.HostIP.Is4() && !to.Is4() {
			continue
		}
		st := s.state(via.NetworkID)
		if st == nil || st.Driver != driverBridge {
			continue
		}
		rules = append(rules, Rule{Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort, To: netip.AddrPortFrom(to, p.Number), Routed: st.gatewayMode(to) == modeRouted})
	}
	return rules
}

// proxy serves what packet rules cannot. A port that it cannot have is only
// less reachable: the container runs.
func (s *Service) proxy(b *box) {
	if s.o.Proxy == nil {
		return
	}
	s.o.Proxy.Stop(b.proxied)
	b.proxied = nil
	for _, r := range b.rules.Ports {
		if !r.Routed && r.HostIP.Is6() {
			b.proxied = append(b.proxied, r)
		}
	}
	if err := s.o.Proxy.Serve(b.proxied); err != nil {
		s.log.Warn("ports are not reached over IPv6", "container", b.id, "error", err)
	}
}

func (s *Service) state(id string) *state {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byID[id]
}

// unpublish gives the host ports of a sandbox back, which lead nowhere.
func (s *Service) unpublish(b *box) {
	for _, p := range b.held {
		s.ports.give(p)
	}
	b.held, b.ports = nil, nil
}

// republish moves published ports after the way out has changed. Without one
// nothing is published.
func (s *Service) republish(b *box) error {
	old := Rules{Ports: b.rules.Ports}
	guards := b.rules.Guards
	if err := s.forbid(old); err != nil {
		return err
	}
	b.rules = Rules{}
	if way4, way6 := s.ways(b); way4 == nil && way6 == nil {
		s.unpublish(b)
	}
	err := s.publishPorts(b)
	b.rules.Guards = guards
	return err
}
