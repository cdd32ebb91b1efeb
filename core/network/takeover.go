package network

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Succeed lets a container start while another still has the host ports that
// both ask for: they lead to the other until TakeOver.
func (s *Service) Succeed(from, to container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heirs[to] = from
}

// predecessor is who has the ports that a container is to take over.
func (s *Service) predecessor(to container.ID) *box {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.boxes[s.heirs[to]]
}

// holds gives what a box has of another's wish for one port. Of a range of host
// ports that is the one which leads to the same port of the container.
func (b *box) holds(p container.Publish, ips []netip.Addr) (list []container.Binding) {
	for _, h := range b.held {
		if within(h, p) && (h.Number == p.Number || p.HostPortEnd <= p.HostPort) && slices.ContainsFunc(ips, func(ip netip.Addr) bool { return clash(ip, h.HostIP) }) {
			list = append(list, h)
		}
	}
	return list
}

// within tells whether a binding is to the host port, or one of the host ports, that are asked for.
func within(h container.Binding, p container.Publish) bool {
	return p.HostPort != 0 && h.Proto == p.Proto && p.HostPort <= h.HostPort && h.HostPort <= max(p.HostPort, p.HostPortEnd)
}

// TakeOver gives a running container the host ports that it asks for and lacks:
// those that from has lead to it from one moment to the next, in one
// transaction; the rest is reserved. Connections that are open stay with from.
// It gives what is published now, of to and of from.
func (s *Service) TakeOver(from, to container.Container) (now, left []container.Binding, err error) {
	s.mu.Lock()
	delete(s.heirs, to.ID)
	b, old := s.boxes[to.ID], s.boxes[from.ID]
	s.mu.Unlock()
	if b == nil {
		return nil, nil, fault.Conflictf("container %s is not on the network: it cannot take ports over", to.Name)
	}
	if old == nil {
		old = &box{}
	}
	way4, way6 := s.ways(b)
	out := way4
	if out == nil {
		out = way6
	}
	if out == nil {
		return b.ports, old.ports, nil
	}
	st := s.state(out.NetworkID)
	if st == nil || st.Driver != driverBridge {
		return b.ports, old.ports, nil
	}
	var moved, fresh []container.Binding
	for _, p := range b.wantedPorts() {
		if slices.ContainsFunc(b.held, func(h container.Binding) bool {
			return h.Port == p.Port && (p.HostPort == 0 || within(h, p))
		}) {
			continue
		}
		ips := s.hostAddresses(st, p, *out)
		had := old.holds(p, ips)
		if len(had) == 0 && len(ips) > 0 {
			port, taken := s.ports.take(p, ips)
			if taken != nil {
				err = errors.Join(err, taken)
				continue
			}
			for _, ip := range ips {
				fresh = append(fresh, container.Binding{Port: p.Port, HostIP: ip, HostPort: port})
			}
		}
		for _, h := range had {
			moved = append(moved, h)
			fresh = append(fresh, container.Binding{Port: p.Port, HostIP: h.HostIP, HostPort: h.HostPort})
		}
	}
	if len(fresh) == 0 {
		return b.ports, old.ports, err
	}
	had := func(r Rule) bool {
		return slices.ContainsFunc(moved, func(m container.Binding) bool {
			return m.Proto == r.Proto && m.HostIP == r.HostIP && m.HostPort == r.HostPort
		})
	}
	var gone []Rule
	for _, r := range old.rules.Ports {
		if had(r) {
			gone = append(gone, r)
		}
	}
	b.held, b.ports = append(slices.Clone(b.held), fresh...), append(slices.Clone(b.ports), fresh...)
	rules := s.portRules(b, way4, way6)
	added := slices.DeleteFunc(slices.Clone(rules), func(r Rule) bool { return slices.Contains(b.rules.Ports, r) })
	b.rules.Ports = rules
	stays := func(x container.Binding) bool { return slices.Contains(moved, x) }
	old.held, old.ports = slices.DeleteFunc(slices.Clone(old.held), stays), slices.DeleteFunc(slices.Clone(old.ports), stays)
	old.rules.Ports = slices.DeleteFunc(slices.Clone(old.rules.Ports), had)
	old.proxied = slices.DeleteFunc(slices.Clone(old.proxied), had)
	if s.o.Firewall != nil {
		err = errors.Join(err, s.o.Firewall.Switch(Rules{Ports: gone}, Rules{Ports: added}))
	}
	if s.o.Proxy != nil {
		var six []Rule
		for _, r := range added {
			if !r.Routed && r.HostIP.Is6() {
				six = append(six, r)
			}
		}
		if served := s.o.Proxy.Serve(six); served != nil {
			s.log.Warn("ports are not reached over IPv6", "container", to.ID, "error", served)
		}
		b.proxied = append(slices.Clone(b.proxied), six...)
	}
	return b.ports, old.ports, err
}
