package network

import (
	"context"
	"slices"
)

// mend makes the bridge of a network again that someone else has deleted, and
// puts the containers on it back. name "" stands for any.
func (s *Service) mend(name string) {
	if !slices.ContainsFunc(s.list(), func(st *state) bool { return st.bridge != "" && (name == "" || st.bridge == name) }) {
		return // a container's interface, or nothing of ours
	}
	s.making.Lock() // what we delete ourselves is gone from the list by then
	defer s.making.Unlock()
	ctx := context.Background()
	for _, st := range s.list() {
		if st.bridge == "" || name != "" && st.bridge != name {
			continue
		}
		s.log.Warn("bridge made again", "network", st.Name, "bridge", st.bridge)
		if err := s.raise(ctx, st); err != nil {
			s.log.Error("network not raised", "network", st.Name, "error", err)
			continue
		}
		for _, b := range s.sandboxes() {
			s.mu.RLock()
			endpoints := slices.Clone(b.endpoints)
			s.mu.RUnlock()
			for _, e := range endpoints {
				if e.NetworkID != st.ID {
					continue
				}
				if err := s.o.Links.Attach(ctx, st.link(b.id, e)); err != nil {
					s.log.Warn("interface not repaired", "container", b.id, "network", st.Name, "error", err)
				}
			}
		}
	}
}
