package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// hostsFile of the host, which containers in its namespace see.
const hostsFile = "/etc/hosts"

// Open makes the namespace and all endpoints of a container.
func (s *Service) Open(ctx context.Context, c container.Container) (out container.Sandbox, err error) {
	if strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		return container.Sandbox{}, nil
	}
	if c.Spec.NetworkDisabled || c.Spec.OffNetworks {
		c.Spec.NetworkMode, c.Spec.Endpoints = "none", nil
	}
	specs, states, err := s.wanted(c)
	if err != nil {
		return out, err
	}
	for _, st := range states {
		if err := st.joinable(); err != nil {
			return out, err
		}
	}
	b := &box{id: c.ID, c: c}
	out.ID = string(c.ID)
	if states[0].Driver == driverHost {
		b.host = true
		b.endpoints = []container.Endpoint{plainEndpoint(states[0], specs[0])}
		s.remember(b)
		out.Endpoints, out.Hosts, out.Resolv = b.endpoints, s.hosts(c, nil, true), s.resolv(c, false)
		return out, nil
	}
	defer func() {
		if err != nil {
			s.forget(b)
			if left := s.close(b); left != nil {
				s.log.Warn("network not wholly undone", "container", c.ID, "error", left)
			}
		}
	}()
	if out.NetNS, err = s.o.Links.Open(ctx, out.ID); err != nil {
		return out, err
	}
	if states[0].Driver == driverNull {
		b.endpoints = []container.Endpoint{plainEndpoint(states[0], specs[0])}
		s.remember(b)
		out.Endpoints, out.Hosts, out.Resolv = b.endpoints, s.hosts(c, nil, false), s.resolv(c, false)
		return out, nil
	}
	for i, spec := range specs {
		if _, err := s.join(ctx, b, states[i], spec); err != nil {
			return out, fmt.Errorf("failed to set up container networking: %w", err)
		}
	}
	if err := s.route(b); err != nil {
		return out, err
	}
	if err := s.publishPorts(b); err != nil {
		return out, fmt.Errorf("failed to set up container networking: %w", err)
	}
	s.remember(b)
	if err := s.serveNames(b, out.NetNS); err != nil {
		return out, err
	}
	s.tell("connect", b.c.Name, b.endpoints, c.ID)
	out.Endpoints, out.Ports = slices.Clone(b.endpoints), b.ports
	out.Hosts, out.Resolv = s.hosts(c, b.endpoints, false), s.resolv(c, b.resolver)
	return out, nil
}

// wanted lists the networks a container is to be on, that of its mode first.
func (s *Service) wanted(c container.Container) ([]container.EndpointSpec, []*state, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	main, err := s.find(mode(c.Spec.NetworkMode))
	if err != nil {
		return nil, nil, err
	}
	named := len(c.Spec.Endpoints) == 0
	for _, e := range c.Spec.Endpoints {
		if st, err := s.find(mode(e.Network)); err == nil && st == main {
			named = true
		}
	}
	if !named {
		// Its first network was taken away: that of the next is the way out.
		if main, err = s.find(mode(c.Spec.Endpoints[0].Network)); err != nil {
			return nil, nil, err
		}
	}
	specs, states := []container.EndpointSpec{{Network: main.ID}}, []*state{main}
	for _, e := range c.Spec.Endpoints {
		st, err := s.find(mode(e.Network))
		if err != nil {
			return nil, nil, err
		}
		e.Network = st.ID
		if at := slices.Index(states, st); at >= 0 {
			specs[at] = e
			continue
		}
		specs, states = append(specs, e), append(states, st)
	}
	if specs[0].MacAddress == "" {
		specs[0].MacAddress = c.Spec.MacAddress
	}
	return specs, states, nil
}

// network gives a copy of one that may be gone already.
func (s *Service) network(id string) Network {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if st := s.byID[id]; st != nil {
		return st.Network
	}
	return Network{ID: id}
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

func (s *Service) forget(b *box) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, b.id)
	delete(s.heirs, b.id)
	delete(s.hidden, b.id)
	for _, st := range s.byID {
		delete(st.endpoints, b.id)
	}
}

func plainEndpoint(st *state, spec container.EndpointSpec) container.Endpoint {
	return container.Endpoint{NetworkID: st.ID, NetworkName: st.Name, EndpointID: newID(), Spec: spec}
}

// join gives a sandbox one interface on a network.
func (s *Service) join(ctx context.Context, b *box, st *state, spec container.EndpointSpec) (e container.Endpoint, err error) {
	e = plainEndpoint(st, spec)
	e.DNSNames = dnsNames(b.c, spec, st.Name)
	if e.Interface, err = b.interfaceName(st, spec); err != nil {
		return e, err
	}
	if e.MacAddress, err = macOf(st, spec); err != nil {
		return e, err
	}
	admitted := false
	defer func() {
		if err != nil && !admitted {
			s.giveAddresses(st, e) // else leaving the network gives them back
		}
	}()
	for _, p := range st.pools {
		at, gateway, wish := &e.IPv4, &e.Gateway4, spec.IPv4
		if p.subnet.Addr().Is6() {
			at, gateway, wish = &e.IPv6, &e.Gateway6, spec.IPv6
		}
		if at.IsValid() || wish.IsValid() && !p.subnet.Contains(wish) {
			continue // another pool of the same family serves
		}
		if *at, err = p.take(wish); err != nil {
			return e, err
		}
		if !st.Internal && (st.Driver != driverBridge || st.hasGateway(p)) {
			*gateway = p.gateway
		}
	}
	if spec.MacAddress == "" && st.Driver == driverBridge {
		e.MacAddress = addressMAC(e)
	}
	// Known before anything is made, so that it is undone in any case.
	if admitted = s.admit(b, st, e); !admitted {
		return e, fault.NotFound("network", st.Name)
	}
	if attached := s.o.Links.Attach(ctx, st.link(b.id, e)); attached != nil {
		return e, attached
	}
	b.rules.Guards = append(b.rules.Guards, st.guard(e)...)
	return e, nil
}

// admit counts an endpoint among those of its network, unless that is gone.
func (s *Service) admit(b *box, st *state, e container.Endpoint) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[st.ID] != st {
		return false
	}
	b.endpoints = append(slices.Clone(b.endpoints), e)
	st.endpoints[b.id] = Member{Name: b.c.Name, Endpoint: e}
	return true
}

// macOf reads the wish for a MAC, or makes one.
func macOf(st *state, spec container.EndpointSpec) (string, error) {
	if spec.MacAddress == "" {
		return randomMAC(), nil
	}
	mac, err := net.ParseMAC(spec.MacAddress)
	if err != nil || len(mac) != 6 {
		return "", fault.Invalidf("invalid MAC address: %s", spec.MacAddress)
	}
	if st.Driver == driverIpvlan {
		return "", fault.Invalidf("ipvlan interfaces do not support custom mac address assignment")
	}
	return mac.String(), nil
}

// addressMAC is the same for the same address of a network: neighbours, which
// remember for seconds who had an address last, reach who has it now.
func addressMAC(e container.Endpoint) string {
	switch {
	case e.IPv4.IsValid():
		a := e.IPv4.Addr().As4()
		return net.HardwareAddr(append([]byte{0x02, 0x42}, a[:]...)).String()
	case e.IPv6.IsValid():
		sum := sha256.Sum256(e.IPv6.Addr().AsSlice())
		sum[0] = sum[0]&^1 | 2
		return net.HardwareAddr(sum[:6]).String()
	}
	return randomMAC()
}

// randomMAC is local and for one interface only (IEEE 802).
func randomMAC() string {
	m := make([]byte, 6)
	_, _ = rand.Read(m) // never fails
	m[0] = m[0]&^1 | 2
	return net.HardwareAddr(m).String()
}

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

func (s *Service) giveAddresses(st *state, e container.Endpoint) {
	for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
		for _, p := range st.pools {
			if a.IsValid() && p.subnet.Contains(a.Addr()) {
				p.give(a.Addr())
			}
		}
	}
}

// ways are the endpoints that lead out, by family: of those with a gateway the
// one of the highest priority, then the one whose network's name comes first.
func (s *Service) ways(b *box) (way4, way6 *container.Endpoint) {
	better := func(e, than *container.Endpoint) bool {
		if than == nil || e.Spec.GwPriority != than.Spec.GwPriority {
			return than == nil || e.Spec.GwPriority > than.Spec.GwPriority
		}
		return e.NetworkName < than.NetworkName
	}
	for i := range b.endpoints {
		e := &b.endpoints[i]
		if e.Gateway4.IsValid() && better(e, way4) {
			way4 = e
		}
		if e.Gateway6.IsValid() && better(e, way6) {
			way6 = e
		}
	}
	return way4, way6
}

// route sets the default routes of a sandbox.
func (s *Service) route(b *box) error {
	var routes []Route
	way4, way6 := s.ways(b)
	for _, x := range []struct {
		way     *container.Endpoint
		gateway func(*container.Endpoint) netip.Addr
	}{{way4, func(e *container.Endpoint) netip.Addr { return e.Gateway4 }}, {way6, func(e *container.Endpoint) netip.Addr { return e.Gateway6 }}} {
		if x.way == nil {
			continue
		}
		r := Route{Interface: x.way.Interface, Gateway: x.gateway(x.way)}
		routes = append(routes, r)
	}
	return s.o.Links.Route(string(b.id), routes)
}

// serveNames opens the resolver for a sandbox on a network that has names.
func (s *Service) serveNames(b *box, path string) error {
	named := slices.ContainsFunc(b.endpoints, func(e container.Endpoint) bool { return e.NetworkName != "bridge" })
	if !named || b.resolver || s.o.Resolver == nil {
		return nil
	}
	if err := s.o.Resolver.Serve(string(b.id), path, names{s}); err != nil {
		return err
	}
	b.resolver = true
	return nil
}

// Close takes a sandbox down. Closing what is not open is no error.
func (s *Service) Close(_ context.Context, c container.Container) error {
	if strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		return nil
	}
	s.mu.RLock()
	b := s.boxes[c.ID]
	s.mu.RUnlock()
	if b == nil {
		return s.o.Links.Close(string(c.ID))
	}
	endpoints := b.endpoints
	s.forget(b)
	err := s.close(b)
	s.tell("disconnect", b.c.Name, endpoints, c.ID)
	return err
}

// tell publishes what happens to a container's endpoints. What has no name is
// a step of a build: nobody knows it.
func (s *Service) tell(action, name string, endpoints []container.Endpoint, id container.ID) {
	if name == "" {
		return
	}
	for _, e := range endpoints {
		s.publish(action, s.network(e.NetworkID), "container", string(id))
	}
}

func (s *Service) close(b *box) error {
	if s.o.Resolver != nil {
		s.o.Resolver.Stop(string(b.id))
	}
	var errs []error
	for _, e := range b.endpoints {
		if st := s.state(e.NetworkID); st != nil && st.wired() {
			errs = append(errs, s.o.Links.Drop(st.link(b.id, e)))
		}
	}
	errs = append(errs, s.forbid(b.rules))
	b.rules = Rules{}
	if s.o.Proxy != nil {
		s.o.Proxy.Stop(b.proxied)
	}
	s.unpublish(b)
	b.proxied = nil
	for _, e := range b.endpoints {
		if st := s.state(e.NetworkID); st != nil {
			s.giveAddresses(st, e)
		}
	}
	if b.host {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, s.o.Links.Close(string(b.id)))...)
}

// NetStats reads the counters of a container's interfaces.
func (s *Service) NetStats(c container.Container) (map[string]container.NetStats, error) {
	s.mu.RLock()
	var links []Link
	if b := s.boxes[c.ID]; b != nil {
		for _, e := range b.endpoints {
			if st := s.byID[e.NetworkID]; st != nil && e.Interface != "" {
				links = append(links, st.link(b.id, e))
			}
		}
	}
	s.mu.RUnlock()
	if len(links) == 0 {
		return nil, nil
	}
	out := map[string]container.NetStats{}
	for _, l := range links {
		n, err := s.o.Links.Stats(l)
		if err != nil {
			return nil, err
		}
		out[l.Interface] = n
	}
	return out, nil
}

// hostsOfHost is the host's own file; an engine without one goes on.
func hostsOfHost() []byte {
	b, err := os.ReadFile(hostsFile)
	if err != nil {
		return nil
	}
	return b
}
