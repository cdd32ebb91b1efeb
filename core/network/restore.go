package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/berth-project/berth/core/container"
)

// Restore finds the networks of before, takes over what running containers
// have open, repairs what is damaged and removes what has no owner.
func (s *Service) Restore(ctx context.Context, running []container.Container) error {
	all, err := s.o.Store.Networks(ctx)
	if err != nil {
		return err
	}
	for _, n := range all {
		st, err := s.build(n)
		if err != nil {
			s.log.Error("network not restored", "network", n.Name, "error", err)
			continue
		}
		s.byID[n.ID] = st
	}
	if err := s.predefine(ctx); err != nil {
		return err
	}
	var filters []Filter
	for _, st := range s.byID {
		if err := s.raiseLinks(ctx, st); err != nil {
			s.log.Error("bridge not restored", "network", st.Name, "error", err)
		}
		if st.bridge != "" {
			filters = append(filters, st.filter())
		}
	}
	rules := s.adopt(running)
	if s.o.Firewall != nil {
		if err := s.o.Firewall.Reset(filters, rules); err != nil {
			return err
		}
	}
	return s.sweep()
}

func (s *Service) raiseLinks(ctx context.Context, st *state) error {
	firewall := s.o.Firewall
	s.o.Firewall = nil // Reset writes all rules at once
	defer func() { s.o.Firewall = firewall }()
	return s.raise(ctx, st)
}

// predefine makes bridge, host and none where they are not there.
func (s *Service) predefine(ctx context.Context) error {
	for _, p := range []struct{ name, driver string }{{"host", "host"}, {"none", "null"}, {"bridge", "bridge"}} {
		if p.name == "bridge" && s.o.Bridge.Name == "none" {
			continue
		}
		var old *state
		for _, st := range s.byID {
			if st.Name == p.name {
				old = st
			}
		}
		n := Network{ID: newID(), Name: p.name, Created: time.Now(), Driver: p.driver, Scope: "local", EnableIPv4: true, Options: map[string]string{}}
		if old != nil {
			n = old.Network
		}
		if p.name == "bridge" {
			s.configureDefault(&n)
		}
		st, err := s.build(n)
		if err != nil {
			return err
		}
		s.byID[n.ID] = st
		if err := s.o.Store.PutNetwork(ctx, st.Network); err != nil {
			return err
		}
	}
	return nil
}

// configureDefault writes the daemon's flags into the network "bridge".
func (s *Service) configureDefault(n *Network) {
	b := s.o.Bridge
	truth := func(v bool) string {
		if v {
			return "true"
		}
		return "false"
	}
	n.Options = map[string]string{
		optionDefault: "true", optionICC: truth(b.ICC), optionMasquerade: truth(b.Masq), optionHostIP: "0.0.0.0", optionName: b.Name, optionMTU: itoa(b.MTU),
	}
	delete(n.Options, optionHostIP)
	if b.HostIP.IsValid() {
		n.Options[optionHostIP] = b.HostIP.String()
	}
	if b.BIP.IsValid() {
		n.IPAM.Pools = []Pool{{Subnet: b.BIP.Masked(), Gateway: b.BIP.Addr(), Range: b.FixedCIDR}}
	} else if b.FixedCIDR.IsValid() {
		n.IPAM.Pools = []Pool{{Subnet: b.FixedCIDR.Masked(), Range: b.FixedCIDR}}
	}
}

func itoa(n int) string {
	if n == 0 {
		return "1500"
	}
	digits := ""
	for ; n > 0; n /= 10 {
		digits = string(rune('0'+n%10)) + digits
	}
	return digits
}

// adopt remembers the sandboxes of running containers and gives their published ports.
func (s *Service) adopt(running []container.Container) (rules []Rule) {
	for _, c := range running {
		b := &box{id: c.ID, c: c, endpoints: c.State.Endpoints, ports: c.State.Ports, next: len(c.State.Endpoints)}
		for _, e := range b.endpoints {
			st := s.byID[e.NetworkID]
			if st == nil {
				continue
			}
			for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
				if a.IsValid() {
					for _, p := range st.pools {
						if p.subnet.Contains(a.Addr()) {
							_, _ = p.take(a.Addr()) // taken before by itself at most
						}
					}
				}
			}
		}
		for _, p := range b.ports {
			s.ports.adopt(p)
		}
		if e, ok := s.wayOut(b); ok {
			b.rules = rulesOf(b.ports, e)
			rules = append(rules, b.rules...)
			if s.o.Proxy != nil {
				if err := s.o.Proxy.Serve(b.rules); err != nil {
					s.log.Warn("ports are not reachable at ::1", "container", b.id, "error", err)
				}
			}
		}
		s.remember(b)
		if s.userDefined(b) && s.o.Resolver != nil && c.State.NetNS != "" {
			if err := s.o.Resolver.Serve(string(c.ID), c.State.NetNS, names{s}); err != nil {
				s.log.Error("resolver not restored", "container", c.ID, "error", err)
				continue
			}
			b.resolver = true
		}
	}
	return rules
}

// sweep removes sandboxes and bridges that nobody owns.
func (s *Service) sweep() error {
	keys, err := s.o.Links.Sandboxes()
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range keys {
		if s.boxes[container.ID(key)] == nil {
			errs = append(errs, s.o.Links.Close(key))
		}
	}
	bridges, err := s.o.Links.Bridges()
	if err != nil {
		return err
	}
	for _, name := range bridges {
		if !slices.ContainsFunc(s.list(), func(st *state) bool { return st.bridge == name }) {
			errs = append(errs, s.o.Links.RemoveBridge(name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("something without an owner was not removed", "error", err)
	}
	return nil
}

func (s *Service) list() []*state {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []*state
	for _, st := range s.byID {
		all = append(all, st)
	}
	return all
}

// Shutdown leaves what running containers need; without any, nothing stays on the host.
func (s *Service) Shutdown() error {
	s.mu.RLock()
	open := len(s.boxes)
	s.mu.RUnlock()
	if s.o.Resolver != nil {
		for id := range s.boxes {
			s.o.Resolver.Stop(string(id))
		}
	}
	if open > 0 {
		return nil
	}
	var errs []error
	for _, st := range s.list() {
		if st.bridge != "" {
			errs = append(errs, s.o.Links.RemoveBridge(st.bridge))
		}
	}
	if s.o.Firewall != nil {
		errs = append(errs, s.o.Firewall.Remove())
	}
	return errors.Join(errs...)
}
