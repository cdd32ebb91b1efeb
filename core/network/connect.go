package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Connect adds a running container to a network; it gives what is published then.
func (s *Service) Connect(ctx context.Context, c container.Container, spec container.EndpointSpec) (container.Endpoint, []container.Binding, error) {
	s.mu.RLock()
	b := s.boxes[c.ID]
	s.mu.RUnlock()
	if b == nil || b.host {
		return container.Endpoint{}, nil, fault.Forbiddenf("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	e, err := s.connect(ctx, b, c, spec)
	return e, slices.Clone(b.ports), err
}

func (s *Service) connect(ctx context.Context, b *box, c container.Container, spec container.EndpointSpec) (e container.Endpoint, err error) {
	s.mu.RLock()
	st, err := s.find(mode(spec.Network))
	s.mu.RUnlock()
	if err != nil {
		return e, err
	}
	if err := st.joinable(); err != nil {
		return e, err
	}
	if st.Driver == driverHost {
		return e, fault.Forbiddenf("cannot connect container to host network - container must be created in host network mode")
	}
	for _, have := range b.endpoints {
		if have.NetworkID == st.ID {
			return e, fault.Forbiddenf("endpoint with name %s already exists in network %s", c.Name, st.Name)
		}
		if have.NetworkName == "none" || st.Driver == driverNull {
			return e, fault.Forbiddenf("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	spec.Network = st.ID
	b.c = c
	before := len(b.endpoints)
	e, err = s.join(ctx, b, st, spec)
	if err == nil {
		err = s.settle(b, st.guard(e))
	}
	if err == nil {
		err = s.serveNames(b, s.o.Links.Path(string(c.ID)))
	}
	if err != nil {
		if len(b.endpoints) > before {
			if left := s.leave(b, before); left != nil {
				s.log.Warn("network not wholly undone", "container", c.ID, "error", left)
			}
		}
		return container.Endpoint{}, err
	}
	s.editHosts(c, e, true)
	if b.resolver {
		rewrite(c.ResolvConfPath, func([]byte) []byte { return s.resolv(c, true) })
	}
	s.publish("connect", st.Network, "container", string(c.ID))
	return e, nil
}

// settle brings routes and rules to what the endpoints now are.
func (s *Service) settle(b *box, guards []Guard) error {
	if err := s.let(Rules{Guards: guards}); err != nil {
		return err
	}
	if err := s.route(b); err != nil {
		return err
	}
	return s.republish(b)
}

// Disconnect takes a running container off a network; it gives what is
// published then.
func (s *Service) Disconnect(_ context.Context, c container.Container, ref string, _ bool) ([]container.Binding, error) {
	s.mu.RLock()
	st, err := s.find(mode(ref))
	b := s.boxes[c.ID]
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	at := -1
	if b != nil {
		at = slices.IndexFunc(b.endpoints, func(e container.Endpoint) bool { return e.NetworkID == st.ID })
	}
	if at < 0 {
		return nil, fault.Forbiddenf("container %s is not connected to network %s", c.ID, st.Name)
	}
	if st.Driver == driverHost {
		return nil, fault.Forbiddenf("container cannot be disconnected from host network or connected to host network")
	}
	e := b.endpoints[at]
	err = s.leave(b, at)
	s.editHosts(c, e, false)
	s.publish("disconnect", st.Network, "container", string(c.ID))
	return slices.Clone(b.ports), err
}

// leave takes one endpoint away and moves what led over it.
func (s *Service) leave(b *box, at int) error {
	e := b.endpoints[at]
	s.mu.Lock()
	st := s.byID[e.NetworkID]
	b.endpoints = slices.Delete(slices.Clone(b.endpoints), at, at+1)
	if st != nil {
		delete(st.endpoints, b.id)
	}
	s.mu.Unlock()
	if st == nil || !st.wired() {
		return nil
	}
	gone := Rules{Guards: st.guard(e)}
	b.rules.Guards = slices.DeleteFunc(b.rules.Guards, func(g Guard) bool { return g.Port == hostName(e.EndpointID) })
	if err := s.forbid(gone); err != nil {
		return err
	}
	if err := s.o.Links.Detach(st.link(b.id, e)); err != nil {
		return fmt.Errorf("leave network %s: %w", st.Name, err)
	}
	s.giveAddresses(st, e)
	if err := s.route(b); err != nil {
		return err
	}
	return s.republish(b)
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
	b.endpoints = slices.Clone(b.endpoints)
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

// editHosts adds the lines of an endpoint to a running container's hosts, or
// takes them out. The file is the engine's own, not one inside the root.
func (s *Service) editHosts(c container.Container, e container.Endpoint, add bool) {
	rewrite(c.HostsPath, func(text []byte) []byte {
		for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
			if !a.IsValid() {
				continue
			}
			line := []byte(hostsLine(c, a.Addr()))
			if add {
				text = append(text, line...)
			} else {
				text = bytes.Replace(text, line, nil, 1)
			}
		}
		return text
	})
}

// longestFile of those that containers may write themselves.
const longestFile = 1 << 20

// rewrite changes a file in place: it is bound into the container. What
// cannot be read or written is left as it is.
func rewrite(path string, change func([]byte) []byte) {
	if path == "" {
		return
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > longestFile {
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if changed := change(bytes.Clone(text)); !bytes.Equal(changed, text) {
		_ = os.WriteFile(path, changed, 0o644)
	}
}
