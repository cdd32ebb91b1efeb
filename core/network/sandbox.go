package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Check validates mode, endpoints and publishing before a container is made.
func (s *Service) Check(_ context.Context, c container.Container) error {
	if strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.find(mode(c.Spec.NetworkMode))
	if err != nil {
		return err
	}
	for _, e := range c.Spec.Endpoints {
		n, err := s.find(mode(e.Network))
		if err != nil {
			return err
		}
		if n.Driver != "bridge" && len(c.Spec.Endpoints) > 1 {
			return fault.Conflictf("container cannot be connected to network endpoints: cannot attach both user-defined and %s networks", n.Name)
		}
		if err := checkEndpoint(n, e); err != nil {
			return err
		}
	}
	if st.Driver != "bridge" && len(c.Spec.Links) > 0 {
		return fault.Invalidf("conflicting options: %s type networking can't be used with links. This would result in undefined behavior", st.Name)
	}
	return nil
}

func checkEndpoint(n *state, e container.EndpointSpec) error {
	if (e.IPv4.IsValid() || e.IPv6.IsValid()) && n.Name == "bridge" {
		return fault.Invalidf("invalid config for network %s: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only", n.Name)
	}
	if len(e.Aliases) > 0 && n.Driver != "bridge" {
		return fault.Invalidf("network-scoped aliases are only supported for user-defined networks")
	}
	for _, ip := range []netip.Addr{e.IPv4, e.IPv6} {
		if !ip.IsValid() {
			continue
		}
		inside := slices.ContainsFunc(n.IPAM.Pools, func(p Pool) bool { return p.Subnet.Contains(ip) })
		if !inside {
			return fault.Invalidf("invalid config for network %s: invalid endpoint settings:\nno configured subnet contains IP address %s", n.Name, ip)
		}
	}
	return nil
}

// plan lists the networks a container is to be on, that of its mode first.
func (s *Service) wanted(c container.Container) ([]container.EndpointSpec, error) {
	var list []container.EndpointSpec
	first := mode(c.Spec.NetworkMode)
	s.mu.RLock()
	defer s.mu.RUnlock()
	main, err := s.find(first)
	if err != nil {
		return nil, err
	}
	found := false
	for _, e := range c.Spec.Endpoints {
		n, err := s.find(mode(e.Network))
		if err != nil {
			return nil, err
		}
		e.Network = n.ID
		if n == main {
			found = true
			if e.MacAddress == "" {
				e.MacAddress = c.Spec.MacAddress
			}
			list = append([]container.EndpointSpec{e}, list...)
			continue
		}
		list = append(list, e)
	}
	if !found {
		list = append([]container.EndpointSpec{{Network: main.ID, MacAddress: c.Spec.MacAddress}}, list...)
	}
	return list, nil
}

// Open makes the namespace and all endpoints of a container.
func (s *Service) Open(ctx context.Context, c container.Container) (out container.Sandbox, err error) {
	if strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		return container.Sandbox{}, nil
	}
	if c.Spec.NetworkDisabled {
		c.Spec.NetworkMode, c.Spec.Endpoints = "none", nil
	}
	specs, err := s.wanted(c)
	if err != nil {
		return out, err
	}
	s.mu.RLock()
	main := s.byID[specs[0].Network]
	s.mu.RUnlock()
	b := &box{id: c.ID, c: c}
	key := string(c.ID)
	if main.Driver == "host" {
		b.endpoints = []container.Endpoint{s.plainEndpoint(main, c, specs[0])}
		s.remember(b)
		return container.Sandbox{ID: key, Endpoints: b.endpoints, Hosts: s.hosts(c, nil), Resolv: s.resolv(c, false)}, nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(b))
		}
	}()
	path, err := s.o.Links.Open(ctx, key, nil)
	if err != nil {
		return out, err
	}
	if main.Driver == "null" {
		b.endpoints = []container.Endpoint{s.plainEndpoint(main, c, specs[0])}
		s.remember(b)
		return container.Sandbox{ID: key, NetNS: path, Endpoints: b.endpoints, Hosts: s.hosts(c, nil), Resolv: s.resolv(c, false)}, nil
	}
	for i, spec := range order(specs) {
		e, err := s.join(ctx, b, spec, i == 0)
		if err != nil {
			return out, err
		}
		b.endpoints = append(b.endpoints, e)
	}
	if err := s.publishPorts(b); err != nil {
		return out, err
	}
	custom := s.userDefined(b)
	if custom && s.o.Resolver != nil {
		if err := s.o.Resolver.Serve(key, path, names{s}); err != nil {
			return out, err
		}
		b.resolver = true
	}
	s.remember(b)
	return container.Sandbox{ID: key, NetNS: path, Endpoints: b.endpoints, Ports: b.ports, Hosts: s.hosts(c, b.endpoints), Resolv: s.resolv(c, custom)}, nil
}

// order puts the network first whose gateway is to be the way out.
func order(specs []container.EndpointSpec) []container.EndpointSpec {
	specs = slices.Clone(specs)
	slices.SortStableFunc(specs, func(a, b container.EndpointSpec) int { return b.GwPriority - a.GwPriority })
	return specs
}

func (s *Service) remember(b *box) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes[b.id] = b
	for _, e := range b.endpoints {
		if st := s.byID[e.NetworkID]; st != nil {
			st.endpoints[b.id] = Member{Name: b.c.Name, Endpoint: e}
		}
	}
}

func (s *Service) plainEndpoint(st *state, c container.Container, spec container.EndpointSpec) container.Endpoint {
	return container.Endpoint{NetworkID: st.ID, NetworkName: st.Name, EndpointID: newID(), Spec: spec}
}

// userDefined tells whether the container is on a network other than the default.
func (s *Service) userDefined(b *box) bool {
	return slices.ContainsFunc(b.endpoints, func(e container.Endpoint) bool { return e.NetworkName != "bridge" })
}

// join gives a sandbox one interface on a bridge.
func (s *Service) join(ctx context.Context, b *box, spec container.EndpointSpec, gateway bool) (e container.Endpoint, err error) {
	s.mu.RLock()
	st := s.byID[spec.Network]
	s.mu.RUnlock()
	if st == nil {
		return e, fault.NotFound("network", spec.Network)
	}
	if st.bridge == "" {
		return e, fault.Forbiddenf("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	e = container.Endpoint{NetworkID: st.ID, NetworkName: st.Name, EndpointID: newID(), Spec: spec, Interface: fmt.Sprintf("eth%d", b.next), DNSNames: dnsNames(b.c, spec, st.Name)}
	var taken []netip.Addr
	defer func() {
		if err != nil {
			for _, a := range taken {
				s.giveAddress(st, a)
			}
		}
	}()
	l := Link{Sandbox: string(b.id), HostName: hostName(e.EndpointID), Interface: e.Interface, Bridge: st.bridge, MTU: st.mtu(), Isolated: st.Options[optionICC] == "false"}
	for _, p := range st.pools {
		wish := spec.IPv4
		if p.subnet.Addr().Is6() {
			wish = spec.IPv6
		}
		if wish.IsValid() && !p.subnet.Contains(wish) {
			wish = netip.Addr{}
		}
		if p.subnet.Addr().Is4() && e.IPv4.IsValid() || p.subnet.Addr().Is6() && e.IPv6.IsValid() {
			continue // a second pool of the same family serves static wishes only
		}
		a, err := p.take(wish)
		if err != nil {
			return e, err
		}
		taken = append(taken, a.Addr())
		l.Addresses = append(l.Addresses, a)
		if a.Addr().Is4() {
			e.IPv4, e.Gateway4 = a, p.gateway
		} else {
			e.IPv6, e.Gateway6 = a, p.gateway
		}
		if gateway && !st.Internal {
			l.Gateways = append(l.Gateways, p.gateway)
		}
	}
	if st.Internal {
		e.Gateway4, e.Gateway6 = netip.Addr{}, netip.Addr{}
	}
	l.MAC = spec.MacAddress
	if l.MAC == "" {
		l.MAC = randomMAC()
	}
	e.MacAddress = l.MAC
	if err := s.o.Links.Attach(ctx, l); err != nil {
		return e, err
	}
	b.next++
	s.publish("connect", st.Network, "container", string(b.id))
	return e, nil
}

// randomMAC is local and for one interface only (IEEE 802).
func randomMAC() string {
	m := make([]byte, 6)
	_, _ = rand.Read(m) // never fails
	m[0] = m[0]&^1 | 2
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func hostName(endpoint string) string { return "veth" + endpoint[:8] }

func dnsNames(c container.Container, spec container.EndpointSpec, network string) []string {
	if network == "bridge" {
		return nil
	}
	names := []string{c.Name}
	for _, n := range append(slices.Clone(spec.Aliases), c.ID.Short(), c.Spec.Hostname) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

func (s *Service) giveAddress(st *state, a netip.Addr) {
	for _, p := range st.pools {
		if p.subnet.Contains(a) {
			p.give(a)
		}
	}
}

// publishPorts reserves host ports and lets their packets in.
func (s *Service) publishPorts(b *box) error {
	wanted := slices.Clone(b.c.Spec.Publish)
	if b.c.Spec.PublishAll {
		for _, p := range b.c.Spec.Expose {
			if !slices.ContainsFunc(wanted, func(w container.Publish) bool { return w.Port == p }) {
				wanted = append(wanted, container.Publish{Port: p})
			}
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	e, ok := s.wayOut(b)
	if !ok {
		return nil // internal networks publish nothing
	}
	s.mu.RLock()
	st := s.byID[e.NetworkID]
	s.mu.RUnlock()
	for _, p := range wanted {
		ips := []netip.Addr{p.HostIP}
		if !p.HostIP.IsValid() {
			ips[0] = s.o.Bridge.HostIP
			if text := st.Options[optionHostIP]; text != "" {
				ips[0], _ = netip.ParseAddr(text)
			}
			if !ips[0].IsValid() {
				ips = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
			}
		}
		port := uint16(0)
		for _, ip := range ips {
			one := p
			if port != 0 {
				one.HostPort, one.HostPortEnd = port, 0 // the same port in both families
				b.ports = append(b.ports, container.Binding{Port: p.Port, HostIP: ip, HostPort: port})
				continue
			}
			n, err := s.ports.take(one, ip)
			if err != nil {
				return fmt.Errorf("failed to set up container networking: driver failed programming external connectivity on endpoint %s (%s): %w", b.c.Name, e.EndpointID, err)
			}
			port = n
			b.ports = append(b.ports, container.Binding{Port: p.Port, HostIP: ip, HostPort: n})
		}
	}
	b.rules = rulesOf(b.ports, e)
	if s.o.Firewall != nil {
		if err := s.o.Firewall.Publish(b.rules); err != nil {
			return fmt.Errorf("publish ports: %w", err)
		}
	}
	if s.o.Proxy != nil {
		if err := s.o.Proxy.Serve(b.rules); err != nil {
			s.log.Warn("ports are not reachable at ::1", "container", b.id, "error", err)
		}
	}
	return nil
}

// wayOut is the endpoint that published ports lead to.
func (s *Service) wayOut(b *box) (container.Endpoint, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range b.endpoints {
		if st := s.byID[e.NetworkID]; st != nil && st.bridge != "" && !st.Internal && e.IPv4.IsValid() {
			return e, true
		}
	}
	return container.Endpoint{}, false
}

func rulesOf(ports []container.Binding, e container.Endpoint) []Rule {
	var rules []Rule
	for _, p := range ports {
		rules = append(rules, Rule{Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort, To: netip.AddrPortFrom(e.IPv4.Addr(), p.Port.Number)})
	}
	return rules
}

// Close takes a sandbox down. Closing what is not open is no error.
func (s *Service) Close(_ context.Context, c container.Container) error {
	if strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		return nil
	}
	s.mu.Lock()
	b := s.boxes[c.ID]
	delete(s.boxes, c.ID)
	s.mu.Unlock()
	if b == nil {
		b = &box{id: c.ID, c: c}
	}
	return s.close(b)
}

func (s *Service) close(b *box) error {
	var errs []error
	if s.o.Resolver != nil {
		s.o.Resolver.Stop(string(b.id))
	}
	if len(b.rules) > 0 {
		if s.o.Firewall != nil {
			errs = append(errs, s.o.Firewall.Unpublish(b.rules))
		}
		if s.o.Proxy != nil {
			s.o.Proxy.Stop(b.rules)
		}
	}
	for i, p := range b.ports {
		if i == 0 || p.Port != b.ports[i-1].Port || p.HostPort != b.ports[i-1].HostPort {
			s.ports.give(p)
		}
	}
	for _, e := range b.endpoints {
		errs = append(errs, s.leave(b, e))
	}
	return errors.Join(append(errs, s.o.Links.Close(string(b.id)))...)
}

func (s *Service) leave(b *box, e container.Endpoint) error {
	s.mu.Lock()
	st := s.byID[e.NetworkID]
	if st != nil {
		delete(st.endpoints, b.id)
	}
	s.mu.Unlock()
	if st == nil {
		return nil
	}
	var err error
	if st.bridge != "" {
		err = s.o.Links.Detach(Link{Sandbox: string(b.id), HostName: hostName(e.EndpointID), Interface: e.Interface, Bridge: st.bridge})
		for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
			if a.IsValid() {
				s.giveAddress(st, a.Addr())
			}
		}
	}
	s.publish("disconnect", st.Network, "container", string(b.id))
	return err
}

// Connect adds a running container to a network.
func (s *Service) Connect(ctx context.Context, c container.Container, spec container.EndpointSpec) (container.Endpoint, error) {
	s.mu.RLock()
	b := s.boxes[c.ID]
	st, err := s.find(mode(spec.Network))
	s.mu.RUnlock()
	if err != nil {
		return container.Endpoint{}, err
	}
	if b == nil {
		return container.Endpoint{}, fault.Forbiddenf("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	for _, e := range b.endpoints {
		if e.NetworkID == st.ID {
			return e, fault.Forbiddenf("endpoint with name %s already exists in network %s", c.Name, st.Name)
		}
		if e.NetworkName == "host" || e.NetworkName == "none" {
			return e, fault.Forbiddenf("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	spec.Network = st.ID
	_, hasWay := s.wayOut(b)
	e, err := s.join(ctx, b, spec, !hasWay)
	if err != nil {
		return e, err
	}
	s.mu.Lock()
	b.endpoints = append(b.endpoints, e)
	st.endpoints[c.ID] = Member{Name: c.Name, Endpoint: e}
	s.mu.Unlock()
	if !b.resolver && st.Name != "bridge" && s.o.Resolver != nil {
		if err := s.o.Resolver.Serve(string(c.ID), s.o.Links.Path(string(c.ID)), names{s}); err != nil {
			return e, err
		}
		b.resolver = true
	}
	return e, nil
}

// Disconnect takes a running container off a network.
func (s *Service) Disconnect(_ context.Context, c container.Container, ref string, _ bool) error {
	s.mu.Lock()
	st, err := s.find(mode(ref))
	b := s.boxes[c.ID]
	if err != nil {
		s.mu.Unlock()
		return err
	}
	at := -1
	if b != nil {
		at = slices.IndexFunc(b.endpoints, func(e container.Endpoint) bool { return e.NetworkID == st.ID })
	}
	if at < 0 {
		s.mu.Unlock()
		return fault.Forbiddenf("container %s is not connected to network %s", c.ID, st.Name)
	}
	if st.Driver == "host" {
		s.mu.Unlock()
		return fault.Forbiddenf("container cannot be disconnected from host network or connected to host network")
	}
	e := b.endpoints[at]
	b.endpoints = append(b.endpoints[:at:at], b.endpoints[at+1:]...)
	s.mu.Unlock()
	return s.leave(b, e)
}

// Renamed gives a running container's new name to the resolver.
func (s *Service) Renamed(_ context.Context, c container.Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.boxes[c.ID]
	if b == nil {
		return nil
	}
	old := b.c.Name
	b.c = c
	for i := range b.endpoints {
		e := &b.endpoints[i]
		e.DNSNames = slices.Clone(e.DNSNames)
		for k, n := range e.DNSNames {
			if n == old {
				e.DNSNames[k] = c.Name
			}
		}
		if st := s.byID[e.NetworkID]; st != nil {
			st.endpoints[c.ID] = Member{Name: c.Name, Endpoint: *e}
		}
	}
	return nil
}

// NetStats reads the counters of a container's interfaces.
func (s *Service) NetStats(c container.Container) (map[string]container.NetStats, error) {
	s.mu.RLock()
	b := s.boxes[c.ID]
	s.mu.RUnlock()
	if b == nil {
		return nil, nil
	}
	out := map[string]container.NetStats{}
	for _, e := range b.endpoints {
		if e.Interface == "" {
			continue
		}
		st, err := s.o.Links.Stats(hostName(e.EndpointID))
		if err != nil {
			return nil, err
		}
		out[e.Interface] = st
	}
	return out, nil
}
