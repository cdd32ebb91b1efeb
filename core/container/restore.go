package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/berth-project/berth/lib/fault"
)

// Restore finds the containers of before: what runs goes on, what ended
// meanwhile is recorded, what was to run is started.
func (s *Service) Restore(ctx context.Context) error {
	all, err := s.o.Store.Containers(ctx)
	if err != nil {
		return err
	}
	tasks := map[ID]Task{}
	list, err := s.o.Runtime.Tasks(ctx)
	if err != nil {
		return err
	}
	for _, t := range list {
		tasks[t.ID] = t
	}
	if err := s.sweep(ctx, all, tasks); err != nil {
		return err
	}
	var running []Container
	var entries []*entry
	for _, c := range all {
		e := &entry{execs: map[string]*execution{}}
		t, known := tasks[c.ID]
		if known && t.Status != Exited && t.Status != Created {
			c.State.Status, c.State.Pid = t.Status, t.Pid
			if c.State.StartedAt.IsZero() || c.State.StartedAt.Before(c.State.FinishedAt) {
				c.State.StartedAt = time.Now() // it was starting when the daemon died
			}
			running = append(running, c)
		}
		if c.ProcessLabel != "" {
			_, err := s.o.Runtime.Confine(c, nil)
			s.tolerate(err, "label not reserved", c.ID)
		}
		e.snap.Store(&c)
		s.add(e)
		entries = append(entries, e)
	}
	s.o.Volumes.Restore(running)
	if err := s.o.Networks.Restore(ctx, running); err != nil {
		return err
	}
	for _, e := range entries {
		t, known := tasks[e.snap.Load().ID]
		delete(tasks, e.snap.Load().ID)
		s.restoreOne(ctx, e, t, known)
	}
	for id := range tasks {
		s.log.Warn("process without a container removed", "container", id)
		s.tolerate(s.o.Runtime.Delete(ctx, id, ""), "process not removed", id)
		s.tolerate(s.o.RootFS.Unmount(ctx, id), "root not unmounted", id)
	}
	s.background(s.watchExits)
	for _, e := range entries {
		s.startAgain(e)
	}
	return nil
}

// sweep removes what belongs to no container: the daemon was killed between
// making it and remembering whose it is.
func (s *Service) sweep(ctx context.Context, all []Container, tasks map[ID]Task) error {
	known := make(map[ID]bool, len(all))
	for _, c := range all {
		known[c.ID] = true
	}
	for id := range tasks {
		known[id] = true // is removed below with its process
	}
	if err := s.o.RootFS.Sweep(ctx, func(id ID) bool { return known[id] }); err != nil {
		return err
	}
	folders, err := os.ReadDir(s.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range folders {
		if id := ID(f.Name()); f.IsDir() && len(id) == idLength && !known[id] {
			s.log.Warn("folder without a container removed", "container", id)
			s.tolerate(removeAll(s.folder(id)), "folder not removed", id)
		}
	}
	return nil
}

func (s *Service) restoreOne(ctx context.Context, e *entry, t Task, known bool) {
	c := *e.snap.Load()
	switch {
	case known && t.Status == Created:
		// Its daemon died before the program ran: the start never was, and has failed.
		s.tolerate(s.o.Runtime.Delete(ctx, c.ID, ""), "process not removed", c.ID)
		e.mounted = true
		s.closeRun(ctx, e, c)
		e.change(func(c *Container) { c.State.Pid, c.State.Endpoints, c.State.Ports, c.State.NetNS = 0, nil, nil, "" })
		s.removeByItself(ctx, e)
	case known:
		e.mounted, e.ended = true, make(chan struct{})
		e.stopping = c.State.StoppedByUser
		s.reattach(ctx, e)
		if t.Status == Exited {
			if !c.alive() {
				e.change(func(c *Container) { c.State.Status = Running })
			}
			e.op.Lock()
			s.exited(ctx, e, t.Exit)
			e.op.Unlock()
			return
		}
		s.watchHealth(e)
	case c.isRunning():
		// Neither the process nor its keeper lived on: the machine was restarted.
		e.mounted = true
		s.closeRun(ctx, e, c)
		e.change(func(c *Container) {
			if c.State.Status != Restarting {
				c.State.ExitCode, c.State.FinishedAt = 137, time.Now()
			}
			c.State.Status = Exited
			c.State.Pid, c.State.Endpoints, c.State.Ports, c.State.NetNS = 0, nil, nil, ""
		})
		s.tolerate(s.save(e), "container not saved", c.ID)
		s.removeByItself(ctx, e)
	case c.State.Status == Removing || c.State.Status == Dead:
		e.change(func(c *Container) { c.State.Status = Exited })
		if err := s.remove(ctx, e, RemoveOptions{Volumes: c.State.VolumesToo}); err != nil && !errors.Is(err, fault.ErrNotFound) {
			s.log.Warn("container not removed", "container", c.ID, "error", err)
		}
	case c.State.Status == Exited || c.State.Error != "" || c.State.SandboxID != "":
		// The daemon died between its end and its removal, or in its start.
		s.removeByItself(ctx, e)
	}
}

// removeByItself removes a container that ends with its run (--rm).
func (s *Service) removeByItself(ctx context.Context, e *entry) {
	if c := e.snap.Load(); c.Spec.AutoRemove {
		s.tolerate(s.remove(ctx, e, RemoveOptions{Volumes: true}), "container not removed", c.ID)
	}
}

// reattach takes the output of a container over where the last daemon stopped.
func (s *Service) reattach(ctx context.Context, e *entry) {
	c := *e.snap.Load()
	pipes, err := s.o.Runtime.Pipes(ctx, c.ID, "")
	if err != nil {
		s.log.Error("output not taken over", "container", c.ID, "error", err)
		return
	}
	stream, err := s.o.Output.Pump(s.ctx, c, pipes)
	if err != nil {
		s.log.Error("output not taken over", "container", c.ID, "error", err)
		return
	}
	e.mu.Lock()
	e.stream = stream
	e.mu.Unlock()
}

// startAgain starts what its restart policy wants to run with the daemon.
func (s *Service) startAgain(e *entry) {
	c := *e.snap.Load()
	if c.alive() || c.State.StartedAt.IsZero() {
		return
	}
	p := c.Spec.Restart.Name
	if p != RestartAlways && (p != RestartUnlessStopped || c.State.StoppedByUser) && c.State.Status != Restarting {
		return
	}
	if c.State.Status == Restarting {
		e.change(func(c *Container) { c.State.Status = Exited })
	} else if s.o.Deferred != nil && s.o.Deferred(c) {
		return
	}
	s.background(func(ctx context.Context) {
		e.op.Lock()
		defer e.op.Unlock()
		if e.snap.Load().alive() {
			return
		}
		if err := s.start(context.WithoutCancel(ctx), e); err != nil {
			s.log.Warn("container not started", "container", c.ID, "error", err)
			s.retry(e)
		}
	})
}
