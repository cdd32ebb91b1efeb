package network

import (
	"maps"

	"github.com/berth-project/berth/lib/fault"
)

// A config-only network is a set of settings that other networks are made
// from: it has no driver, no link and no containers.

// configure gives a network that is to be made from another the settings of that.
func (s *Service) configure(o *CreateOptions) error {
	if o.ConfigOnly {
		if o.ConfigFrom != "" {
			return fault.Forbiddenf("a configuration network cannot depend on another configuration network")
		}
		o.Driver = driverNull
		return nil
	}
	if o.ConfigFrom == "" {
		return nil
	}
	if len(o.IPAM.Pools) > 0 || o.IPAM.Driver != "" && o.IPAM.Driver != "default" || len(o.IPAM.Options) > 0 || len(o.Labels) > 0 || len(o.Options) > 0 {
		return fault.Forbiddenf("user specified configurations are not supported if the network depends on a configuration network")
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	from, err := s.find(o.ConfigFrom)
	if err != nil {
		return fault.NotFoundf("configuration network %q does not exist", o.ConfigFrom)
	}
	if !from.ConfigOnly {
		return fault.Forbiddenf("network %q is not a configuration network", from.Name)
	}
	o.ConfigFrom, o.IPAM = from.Name, from.IPAM
	o.Options, o.Labels = maps.Clone(from.Options), maps.Clone(from.Labels)
	v4, v6 := from.EnableIPv4, from.EnableIPv6
	o.EnableIPv4, o.EnableIPv6 = &v4, &v6
	return nil
}

// configured names a network that has its settings from st, "" where none has. s.mu is held.
func (s *Service) configured(st *state) string {
	if !st.ConfigOnly {
		return ""
	}
	for _, n := range s.byID {
		if n.ConfigFrom == st.Name {
			return n.Name
		}
	}
	return ""
}

// joinable refuses a config-only network.
func (st *state) joinable() error {
	if st.ConfigOnly {
		return fault.Forbiddenf("cannot create endpoint on configuration-only network %s", st.Name)
	}
	return nil
}
