package container

import (
	"context"
	"errors"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-project/berth/lib/fault"
)

// killLimit is how long the end of a killed process may take until it counts as stuck.
const killLimit = 10 * time.Second

// Stop asks a container to end and kills it when it does not in time.
func (s *Service) Stop(ctx context.Context, id string, o StopOptions) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	if !e.snap.Load().isRunning() {
		return fault.NotModifiedf("container already stopped")
	}
	if err := s.stopEntry(ctx, e, o); err != nil {
		return err
	}
	s.publish(*e.snap.Load(), "stop")
	return nil
}

func (s *Service) stopEntry(ctx context.Context, e *entry, o StopOptions) error {
	c := *e.snap.Load()
	text := o.Signal
	if text == "" {
		text = c.Spec.StopSignal
	}
	sig, err := ParseSignal(text)
	if err != nil {
		return err
	}
	timeout := s.o.Defaults.StopTimeout
	if c.Spec.StopTimeout != nil {
		timeout = *c.Spec.StopTimeout
	}
	if o.Timeout != nil {
		timeout = *o.Timeout
	}
	ended, running := s.intend(e)
	if !running {
		return nil
	}
	// A client that leaves does not stop the stopping.
	ctx = context.WithoutCancel(ctx)
	if err := s.signal(ctx, e, sig); err != nil && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	var limit <-chan time.Time
	if timeout >= 0 {
		timer := time.NewTimer(time.Duration(timeout) * time.Second)
		defer timer.Stop()
		limit = timer.C
	}
	select {
	case <-ended:
		return nil
	case <-limit:
	case <-s.ctx.Done():
		return fault.Unavailablef("the daemon is stopping")
	}
	return s.finish(ctx, e, ended)
}

// intend notes that the end is wanted, so that no policy starts the container
// again. It gives the channel that tells of the end of the present run.
func (s *Service) intend(e *entry) (ended chan struct{}, running bool) {
	e.mu.Lock()
	e.stopping = true
	ended = e.ended
	cancel := e.cancel
	e.mu.Unlock()
	c := e.change(func(c *Container) { c.State.StoppedByUser = true })
	if c.State.Status == Restarting {
		if cancel != nil {
			cancel()
		}
		e.op.Lock()
		defer e.op.Unlock()
		if e.snap.Load().State.Status == Restarting {
			e.change(func(c *Container) { c.State.Status = Exited })
			s.tolerate(s.save(e), "container not saved", c.ID)
			return nil, false
		}
		e.mu.Lock()
		ended = e.ended
		e.mu.Unlock()
	}
	return ended, e.snap.Load().alive() && ended != nil
}

// finish kills and waits for the end.
func (s *Service) finish(ctx context.Context, e *entry, ended <-chan struct{}) error {
	if err := s.signal(ctx, e, syscall.SIGKILL); err != nil && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	timer := time.NewTimer(killLimit)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-timer.C:
		return fault.Internalf("tried to kill container, but did not receive an exit event")
	case <-s.ctx.Done():
		return fault.Unavailablef("the daemon is stopping")
	}
}

// signal sends one to the first process; a paused container is thawed so that it hears.
func (s *Service) signal(ctx context.Context, e *entry, sig syscall.Signal) error {
	c := *e.snap.Load()
	if err := s.o.Runtime.Kill(ctx, c.ID, "", sig); err != nil {
		return err
	}
	s.publish(c, "kill", "signal", strconv.Itoa(int(sig)))
	if c.State.Status == Paused {
		if err := s.o.Runtime.Resume(ctx, c.ID); err != nil {
			s.log.Warn("container not thawed", "container", c.ID, "error", err)
		}
		e.change(func(c *Container) {
			if c.State.Status == Paused {
				c.State.Status = Running
			}
		})
	}
	return nil
}

// Kill sends a signal. SIGKILL waits for the end.
func (s *Service) Kill(ctx context.Context, id, text string) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	if text == "" {
		text = "KILL"
	}
	sig, err := ParseSignal(text)
	if err != nil {
		return err
	}
	c := e.snap.Load()
	if !c.alive() {
		if c.State.Status == Restarting && sig == syscall.SIGKILL {
			s.intend(e)
			return nil
		}
		return fault.Conflictf("cannot kill container: %s: container %s is not running", id, c.ID)
	}
	own, _ := ParseSignal(c.Spec.StopSignal)
	if sig == syscall.SIGKILL || sig == own {
		ended, running := s.intend(e)
		if running && sig == syscall.SIGKILL {
			return s.finish(context.WithoutCancel(ctx), e, ended)
		}
	}
	err = s.signal(ctx, e, sig)
	if errors.Is(err, fault.ErrNotFound) {
		return fault.Conflictf("cannot kill container: %s: container %s is not running", id, c.ID)
	}
	return err
}

// Restart stops a container that runs and starts it.
func (s *Service) Restart(ctx context.Context, id string, o StopOptions) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	if e.snap.Load().isRunning() {
		// The stop is a step of the restart: auto-removal must not follow it.
		keep := func(on bool) { e.mu.Lock(); e.kept = on; e.mu.Unlock() }
		keep(true)
		err := s.stopEntry(ctx, e, o)
		keep(false)
		if err != nil {
			return err
		}
	}
	if err := s.Start(ctx, string(e.snap.Load().ID)); err != nil && !errors.Is(err, fault.ErrNotModified) {
		return err
	}
	s.publish(*e.snap.Load(), "restart")
	return nil
}

// Pause freezes a container's processes.
func (s *Service) Pause(ctx context.Context, id string) error { return s.freeze(ctx, id, true) }

// Unpause lets them go on.
func (s *Service) Unpause(ctx context.Context, id string) error { return s.freeze(ctx, id, false) }

func (s *Service) freeze(ctx context.Context, id string, freeze bool) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	e.op.Lock()
	defer e.op.Unlock()
	c := e.snap.Load()
	status, action, act := Paused, "pause", s.o.Runtime.Pause
	if freeze {
		switch {
		case c.State.Status == Paused:
			return fault.Conflictf("container %s is already paused", c.ID)
		case c.State.Status == Restarting:
			return fault.Conflictf("container %s is restarting, wait until the container is running", c.ID)
		case !c.alive():
			return notRunning(*c)
		}
	} else {
		if c.State.Status != Paused {
			return fault.Conflictf("container %s is not paused", c.ID)
		}
		status, action, act = Running, "unpause", s.o.Runtime.Resume
	}
	if err := act(ctx, c.ID); err != nil {
		return err
	}
	after := e.change(func(c *Container) { c.State.Status = status })
	s.publish(after, action)
	return s.save(e)
}
