package app

import (
	"slices"
	"time"

	"github.com/berth-project/berth/core/event"
)

// heed watches what other clients do to applications: a service one of whose
// containers they remove is theirs from then on, as the daemon must not bring
// back tomorrow what docker compose took away today. The next `up` of ours
// takes it again. It ends with the service.
func (s *Service) heed() {
	defer s.work.Done()
	since := time.Time{}
	for s.ctx.Err() == nil {
		missed, events := s.o.Events.Subscribe(s.ctx, since)
		for _, e := range missed {
			s.heedOne(e)
		}
		for e := range events { // closed when it falls behind, or at the end
			s.heedOne(e)
			since = e.Time
		}
	}
}

func (s *Service) heedOne(e event.Event) {
	name, service := e.Attributes[LabelApp], e.Attributes[LabelService]
	if e.Type != "container" || e.Action != "destroy" || name == "" || e.Attributes[LabelOneOff] == "True" || e.Attributes[LabelHook] != "" {
		return
	}
	lane := s.lane(name)
	select {
	case lane <- struct{}{}:
		defer func() { <-lane }()
	default:
		return // an operation is under way: it says what is wanted
	}
	r, ok := s.record(name)
	if !ok || r.Current == 0 || s.isOurs(name, e.Time) {
		return
	}
	a, _, err := s.known(s.ctx, name, nil)
	if err != nil || a == nil {
		return
	}
	if _, ok := a.Project.Services[service]; !ok || len(r.Services) > 0 && !slices.Contains(r.Services, service) {
		return
	}
	after, err := s.change(s.ctx, name, func(r *Record) { r.leave(a, []string{service}) })
	if err != nil {
		s.log.Error("application not noted", "app", name, "error", err)
		return
	}
	if after.Current == 0 {
		s.clock.set(name, nil)
	}
	s.log.Info("service left to others", "app", name, "service", service)
}

// isOurs tells whether an operation on the application was under way, or has come since.
func (s *Service) isOurs(app string, at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.operations {
		if ended := o.endedAt(); o.App == app && (ended.IsZero() || !at.After(ended)) {
			return true
		}
	}
	return false
}

// leave takes services out of what is wanted; without any, nothing is.
func (r *Record) leave(a *App, services []string) {
	if r.Services == nil && a != nil {
		r.Services = a.Project.ServiceNames()
	}
	r.Services = slices.DeleteFunc(slices.Clone(r.Services), func(n string) bool { return slices.Contains(services, n) })
	if len(r.Services) == 0 {
		r.Current, r.Services = 0, nil
	}
}
