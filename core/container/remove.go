package container

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/lib/fault"
)

// Remove takes a container away with all that belongs to it.
func (s *Service) Remove(ctx context.Context, id string, o RemoveOptions) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	if o.Link {
		return fault.Unsupportedf("removing a link by its name is not supported")
	}
	return s.remove(context.WithoutCancel(ctx), e, o)
}

func (s *Service) remove(ctx context.Context, e *entry, o RemoveOptions) error {
	c := e.snap.Load()
	if c.isRunning() {
		if !o.Force {
			state := string(c.State.Status)
			return fault.Conflictf("cannot remove container %q: container is %s: stop the container before removing or force remove", "/"+c.Name, state)
		}
		if ended, running := s.intend(e); running {
			if err := s.finish(ctx, e, ended); err != nil {
				return err
			}
		}
	}
	e.op.Lock()
	defer e.op.Unlock()
	c = e.snap.Load()
	switch {
	case c.State.Status == Removing:
		return nil // gone while we waited
	case c.alive():
		return fault.Conflictf("cannot remove container %q: container is running: stop the container before removing or force remove", "/"+c.Name)
	}
	// A daemon that is killed from here on goes on with it when it is back.
	removing := e.change(func(c *Container) { c.State.Status, c.State.VolumesToo = Removing, o.Volumes })
	s.tolerate(s.o.Store.NoteContainer(ctx, removing), "container not saved", c.ID)
	fail := func(err error) error {
		e.change(func(c *Container) { c.State.Status = Dead; c.State.Error = err.Error() })
		s.tolerate(s.save(e), "container not saved", c.ID)
		return err
	}
	if err := s.o.RootFS.Remove(ctx, c.ID); err != nil {
		return fail(err)
	}
	s.tolerate(s.o.Output.Forget(*c), "log not removed", c.ID)
	if err := removeAll(s.folder(c.ID)); err != nil {
		return fail(err)
	}
	if o.Volumes {
		s.removeVolumes(ctx, *c)
	}
	if err := s.o.Store.DeleteContainer(ctx, c.ID); err != nil {
		return fail(err)
	}
	s.o.Runtime.Release(*c)
	s.forget(e)
	s.publish(*c, "destroy")
	e.mu.Lock()
	pending := e.pending
	e.pending = nil
	e.mu.Unlock()
	for _, a := range pending {
		a.fail()
	}
	s.notify(e, WaitResult{ExitCode: c.State.ExitCode}, WaitRemoved, WaitNextExit, WaitNotRunning)
	return nil
}

// removeVolumes takes away the volumes that were made for a container, before
// it is forgotten: a daemon that is killed meanwhile must find them. Those that
// another container uses stay.
func (s *Service) removeVolumes(ctx context.Context, c Container) {
	for _, p := range c.Mounts {
		if p.Type != MountVolume || !p.Anonymous {
			continue
		}
		s.mu.Lock()
		s.unuse(p.Name, c.ID)
		s.mu.Unlock()
		if err := s.o.Volumes.Remove(ctx, p.Name); !errors.Is(err, fault.ErrConflict) && !errors.Is(err, fault.ErrNotFound) {
			s.tolerate(err, "volume not removed", c.ID)
		}
	}
}

// Rename gives a container another name.
func (s *Service) Rename(ctx context.Context, id, name string) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return fault.Invalidf("Neither old nor new names may be empty")
	}
	e.op.Lock()
	defer e.op.Unlock()
	old := e.snap.Load().Name
	if old == name {
		return fault.Invalidf("Renaming a container with the same name as its current name")
	}
	if _, err := s.take(name, e.snap.Load().ID); err != nil {
		return err
	}
	c := e.change(func(c *Container) { c.Name = name })
	if err := s.save(e); err != nil {
		e.change(func(c *Container) { c.Name = old })
		s.giveBack(name, c.ID)
		return err
	}
	s.giveBack(old, c.ID)
	if c.alive() {
		s.tolerate(s.o.Networks.Renamed(ctx, c), "name not changed on networks", c.ID)
	}
	s.publish(c, "rename", "oldName", "/"+old)
	return nil
}

// Prune removes all containers that do not run.
func (s *Service) Prune(ctx context.Context, f filter.Args) (PruneResult, error) {
	var r PruneResult
	if err := f.Check("label", "label!", "until"); err != nil {
		return r, err
	}
	until, err := f.Until("until")
	if err != nil {
		return r, err
	}
	for _, c := range s.All() {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		switch {
		case c.isRunning(), !until.IsZero() && c.Created.After(until), !f.Labels("label", c.Spec.Labels),
			len(f["label!"]) > 0 && f.Labels("label!", c.Spec.Labels):
			continue
		}
		size, _, err := s.o.RootFS.Usage(ctx, c.ID)
		if err != nil {
			size = 0
		}
		if err := s.Remove(ctx, string(c.ID), RemoveOptions{}); err != nil {
			if !errors.Is(err, fault.ErrNotFound) {
				s.log.Warn("container not pruned", "container", c.ID, "error", err)
			}
			continue
		}
		r.Removed = append(r.Removed, string(c.ID))
		r.Reclaimed += size
	}
	s.o.Events.Publish(event.Event{Type: "container", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(r.Reclaimed, 10)}})
	return r, nil
}
