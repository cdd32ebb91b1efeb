package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Check validates mode, endpoints and publishing before a container is made.
func (s *Service) Check(_ context.Context, c container.Container) error {
	if strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		if len(c.Spec.Endpoints) > 0 {
			return fault.Invalidf("container sharing network namespace with another container or host cannot be connected to any other network")
		}
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	// A network that is not there yet is asked for at the start, as docker does.
	st, err := s.find(mode(c.Spec.NetworkMode))
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.wired() && len(c.Spec.Links) > 0 {
		return fault.Invalidf("conflicting options: %s type networking can't be used with links. This would result in undefined behavior", st.Name)
	}
	if c.Spec.MacAddress != "" {
		if st.Driver == driverHost {
			return fault.Invalidf("conflicting options: mac-address and the network mode")
		}
		if err := checkMAC(c.Spec.MacAddress); err != nil {
			return err
		}
	}
	seen := map[*state]bool{}
	for _, e := range c.Spec.Endpoints {
		n, err := s.find(mode(e.Network))
		if errors.Is(err, fault.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if seen[n] {
			return fault.Forbiddenf("endpoint with name %s already exists in network %s", c.Name, n.Name)
		}
		seen[n] = true
		if n != st && n.Driver == driverHost {
			return fault.Forbiddenf("cannot connect container to host network - container must be created in host network mode")
		}
		if n != st && st.Driver == driverHost {
			return fault.Forbiddenf("cannot connect container to %s: container is attached to host network", n.Name)
		}
		if n != st && (n.Driver == driverNull || st.Driver == driverNull) {
			return fault.Forbiddenf("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
		if err := checkEndpoint(n, e); err != nil {
			return err
		}
	}
	return nil
}

func checkMAC(text string) error {
	if mac, err := net.ParseMAC(text); err != nil || len(mac) != 6 {
		return fault.Invalidf("invalid MAC address: %s", text)
	}
	return nil
}

// checkEndpoint validates what is asked for on one network.
func checkEndpoint(st *state, e container.EndpointSpec) error {
	invalid := func(format string, args ...any) error {
		return fault.Invalidf("invalid config for network %s: invalid endpoint settings:\n"+format, append([]any{st.Name}, args...)...)
	}
	predefined := isPredefined(st.Name)
	if len(e.Aliases) > 0 && predefined {
		return invalid("network-scoped aliases are only supported for user-defined networks")
	}
	for _, ip := range []netip.Addr{e.IPv4, e.IPv6} {
		if !ip.IsValid() {
			continue
		}
		if predefined {
			return invalid("user specified IP address is supported on user defined networks only")
		}
		chosen, inside := false, false
		for _, p := range st.IPAM.Pools {
			if p.Auto || p.Subnet.Addr().Is4() != ip.Is4() {
				continue
			}
			chosen = true
			inside = inside || p.Subnet.Contains(ip)
		}
		if !chosen {
			return invalid("user specified IP address is supported only when connecting to networks with user configured subnets")
		}
		if !inside {
			return invalid("no configured subnet contains IP address %s", ip)
		}
	}
	if e.MacAddress != "" {
		if err := checkMAC(e.MacAddress); err != nil {
			return err
		}
	}
	if _, err := endpointSysctls(e, "IFNAME"); err != nil {
		return invalid("%w", err)
	}
	return nil
}

func isPredefined(name string) bool { return slices.Contains([]string{"bridge", "host", "none"}, name) }
