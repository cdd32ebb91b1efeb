package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
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
	slices.SortFunc(all, func(a, b Network) int { return a.Created.Compare(b.Created) })
	for _, n := range all {
		if n.Name == "bridge" {
			continue // by predefine, with the daemon's flags of now
		}
		st, err := s.build(n)
		if err != nil {
			s.log.Error("network not restored", "network", n.Name, "error", err)
			continue
		}
		s.add(st)
	}
	if err := s.predefine(ctx, all, running); err != nil {
		return err
	}
	var rules Rules
	for _, st := range s.list() {
		if err := s.raise(ctx, st); err != nil {
			s.log.Error("network not raised", "network", st.Name, "error", err)
		}
		rules.Networks = append(rules.Networks, st.rules().Networks...)
	}
	for _, c := range running {
		if c.State.SandboxID == "" && len(c.State.Endpoints) == 0 {
			continue // shares another's namespace
		}
		b := s.adopt(ctx, c)
		rules.Ports = append(rules.Ports, b.rules.Ports...)
		rules.Guards = append(rules.Guards, b.rules.Guards...)
	}
	if s.o.Firewall != nil {
		if err := s.o.Firewall.Reset(rules); err != nil {
			return err
		}
	}
	for _, b := range s.sandboxes() {
		s.proxy(b)
	}
	s.sweep()
	if err := s.o.Links.Watch(s.mend); err != nil {
		s.log.Warn("deleted bridges will not be noticed", "error", err)
	}
	return nil
}

func (s *Service) add(st *state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[st.ID] = st
}

// predefine makes bridge, host and none where they are not there.
func (s *Service) predefine(ctx context.Context, all []Network, running []container.Container) error {
	for _, p := range []struct{ name, driver string }{{"host", driverHost}, {"none", driverNull}, {"bridge", driverBridge}} {
		if p.name == "bridge" && s.o.Bridge.Name == "none" {
			continue
		}
		n := Network{ID: newID(), Name: p.name, Created: time.Now(), Driver: p.driver, Scope: "local", EnableIPv4: true}
		at := slices.IndexFunc(all, func(n Network) bool { return n.Name == p.name })
		if at >= 0 {
			n = all[at]
		}
		if p.name == "bridge" {
			s.configureDefault(&n)
			if err := s.freshen(&n, running); err != nil {
				return err
			}
		}
		st, err := s.build(n)
		if err != nil {
			return err
		}
		s.add(st)
		if at >= 0 && p.name != "bridge" {
			continue
		}
		if err := s.o.Store.PutNetwork(ctx, st.Network); err != nil {
			return err
		}
	}
	return nil
}

// configureDefault writes the daemon's flags into the network "bridge".
func (s *Service) configureDefault(n *Network) {
	b := s.o.Bridge
	n.EnableIPv6 = b.IPv6
	n.Options = map[string]string{
		optionDefault: "true", optionICC: strconv.FormatBool(b.ICC), optionMasquerade: strconv.FormatBool(b.Masq), optionHostIP: "0.0.0.0", optionName: b.Name, optionMTU: strconv.Itoa(b.MTU),
	}
	if b.HostIP.IsValid() {
		n.Options[optionHostIP] = b.HostIP.String()
	}
	var pools []Pool
	switch {
	case b.BIP.IsValid():
		pools = []Pool{{Subnet: b.BIP.Masked(), Gateway: b.BIP.Addr(), Range: b.FixedCIDR.Masked()}}
	case b.FixedCIDR.IsValid():
		pools = []Pool{{Subnet: b.FixedCIDR.Masked(), Range: b.FixedCIDR.Masked()}}
	}
	if b.FixedCIDRv6.IsValid() {
		pools = append(pools, Pool{Subnet: b.FixedCIDRv6.Masked()})
	}
	for _, old := range n.IPAM.Pools {
		// What was chosen once stays, where no flag says otherwise.
		if old.Auto && !slices.ContainsFunc(pools, func(p Pool) bool { return p.Subnet.Addr().Is4() == old.Subnet.Addr().Is4() }) {
			pools = append(pools, old)
		}
	}
	n.IPAM.Pools = pools
}

// freshen drops a chosen subnet of the default bridge that meanwhile leads
// elsewhere, unless containers use it.
func (s *Service) freshen(n *Network, running []container.Container) error {
	if len(running) > 0 {
		return nil
	}
	var kept []Pool
	for _, p := range n.IPAM.Pools {
		if p.Auto && p.Subnet.Addr().Is4() {
			// Of before a crash our own route may be left.
			if err := s.o.Links.RemoveBridge(s.o.Bridge.Name); err != nil {
				return err
			}
			routed, err := s.o.Links.Routed(p.Subnet)
			if err != nil {
				return err
			}
			if routed {
				s.log.Info("subnet of the default bridge leads elsewhere now, another is taken", "subnet", p.Subnet)
				continue
			}
		}
		kept = append(kept, p)
	}
	n.IPAM.Pools = kept
	return nil
}

// adopt takes over the sandbox of a running container and repairs it.
func (s *Service) adopt(ctx context.Context, c container.Container) *box {
	b := &box{id: c.ID, c: c, endpoints: slices.Clone(c.State.Endpoints), ports: c.State.Ports, held: slices.Clone(c.State.Ports), host: c.State.NetNS == ""}
	s.remember(b)
	for _, p := range b.ports {
		s.ports.adopt(p)
	}
	for _, e := range b.endpoints {
		st := s.state(e.NetworkID)
		if st == nil || !st.wired() {
			continue
		}
		for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
			for _, p := range st.pools {
				if a.IsValid() && p.subnet.Contains(a.Addr()) {
					_, _ = p.take(a.Addr()) // a network made anew may have given it to its gateway: known too late to act
				}
			}
		}
		b.rules.Guards = append(b.rules.Guards, st.guard(e)...)
		if err := s.o.Links.Attach(ctx, st.link(b.id, e)); err != nil {
			s.log.Error("interface not repaired", "container", c.ID, "network", st.Name, "error", err)
		}
	}
	if b.host {
		return b
	}
	if err := s.route(b); err != nil {
		s.log.Error("routes not repaired", "container", c.ID, "error", err)
	}
	way4, way6 := s.ways(b)
	b.rules.Ports = s.portRules(b, way4, way6)
	if err := s.serveNames(b, c.State.NetNS); err != nil {
		s.log.Error("resolver not restored", "container", c.ID, "error", err)
	}
	return b
}

// sweep removes sandboxes, bridges and their ports that nobody owns.
func (s *Service) sweep() {
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	boxes := map[string]bool{}
	ports := map[string]bool{}
	for _, b := range s.sandboxes() {
		boxes[string(b.id)] = true
		for _, e := range b.endpoints {
			ports[hostName(e.EndpointID)] = true
		}
	}
	keys, err := s.o.Links.Sandboxes()
	note(err)
	for _, key := range keys {
		if !boxes[key] {
			note(s.o.Links.Close(key))
		}
	}
	bridges, err := s.o.Links.Bridges()
	note(err)
	networks := s.list()
	for _, name := range bridges {
		if !slices.ContainsFunc(networks, func(st *state) bool { return st.bridge == name }) {
			note(s.o.Links.RemoveBridge(name))
		}
	}
	for _, st := range networks {
		if st.bridge == "" {
			continue
		}
		names, err := s.o.Links.Ports(st.bridge)
		note(err)
		for _, name := range names {
			if !ports[name] {
				note(s.o.Links.Detach(Link{Kind: Veth, HostName: name}))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("something without an owner was not removed", "error", err)
	}
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

func (s *Service) sandboxes() []*box {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []*box
	for _, b := range s.boxes {
		all = append(all, b)
	}
	return all
}

// Shutdown leaves what running containers need; without any, nothing stays on the host.
func (s *Service) Shutdown() error {
	boxes := s.sandboxes()
	for _, b := range boxes {
		if s.o.Resolver != nil {
			s.o.Resolver.Stop(string(b.id))
		}
		if s.o.Proxy != nil {
			s.o.Proxy.Stop(b.proxied)
		}
	}
	s.o.Links.Shutdown()
	if len(boxes) > 0 {
		if s.o.Firewall != nil {
			s.o.Firewall.Leave()
		}
		return nil
	}
	var errs []error
	for _, st := range s.list() {
		errs = append(errs, s.lower(st))
	}
	if s.o.Firewall != nil {
		errs = append(errs, s.o.Firewall.Close())
	}
	return errors.Join(errs...)
}
