package container

import (
	"context"

	"github.com/berth-project/berth/lib/crash"
)

// TakeOver gives a running container the host ports that it asks for and that
// another, which it replaces, has. from may be gone.
func (s *Service) TakeOver(_ context.Context, from, to string) error {
	e, err := s.find(to)
	if err != nil {
		return err
	}
	e.op.Lock()
	defer e.op.Unlock()
	c := *e.snap.Load()
	if !c.alive() {
		return notRunning(c)
	}
	var before Container
	old, gone := s.find(from)
	if gone == nil {
		before = *old.snap.Load()
	}
	now, left, err := s.o.Networks.TakeOver(before, c)
	if err != nil {
		return err
	}
	crash.Point("container.takeover")
	changed := []Container{e.change(func(c *Container) { c.State.Ports = now })}
	if gone == nil && before.alive() {
		changed = append(changed, old.change(func(c *Container) {
			if c.alive() {
				c.State.Ports = left
			}
		}))
	}
	// At once: a port is one container's, whenever the daemon dies.
	return s.o.Store.PutContainers(context.WithoutCancel(s.ctx), changed...)
}
