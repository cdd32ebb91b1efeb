package container

import (
	"context"
	"strconv"
	"time"
)

// Times of a run's end.
const (
	drainLimit   = 2 * time.Second // output after the exit: descendants may hold the pipes for ever
	firstDelay   = 100 * time.Millisecond
	longestDelay = time.Minute
	calmAfter    = 10 * time.Second // a run this long makes the next restart quick again
)

// watchExits handles each exit by itself until the service ends.
func (s *Service) watchExits(ctx context.Context) {
	for x := range s.o.Runtime.Exits(ctx) {
		if x.ExecID != "" {
			s.background(func(context.Context) { s.execExited(x) })
			continue
		}
		s.mu.RLock()
		e := s.byID[x.ContainerID]
		s.mu.RUnlock()
		if e != nil {
			s.background(func(ctx context.Context) {
				e.op.Lock()
				defer e.op.Unlock()
				s.exited(context.WithoutCancel(ctx), e, x)
			})
		}
	}
}

// exited records the end of a run, closes all that it held and decides what
// follows; op is held.
func (s *Service) exited(ctx context.Context, e *entry, x Exit) {
	c := *e.snap.Load()
	if !c.alive() || x.Pid != 0 && c.State.Pid != 0 && x.Pid != c.State.Pid {
		return // told before
	}
	e.mu.Lock()
	stream, ended, stopping, kept := e.stream, e.ended, e.stopping, e.kept
	e.stream = nil
	if e.cancel != nil {
		e.cancel()
		e.cancel = nil
	}
	e.mu.Unlock()
	if stream != nil {
		select {
		case <-stream.Drained():
		case <-time.After(drainLimit):
		}
		s.tolerate(stream.Close(), "output not closed", c.ID)
	}
	s.closeRun(ctx, e, c)

	ran := x.Time.Sub(c.State.StartedAt)
	policy, delay := s.restarts(e, c, x, ran, stopping)
	again := false
	c = e.change(func(c *Container) {
		c.State.Status = Exited
		// A stop that came since sees either the wait for a restart or no restart.
		again = policy && !c.State.StoppedByUser
		if again {
			c.State.Status = Restarting
			if c.Spec.Restart.lasted(ran) {
				c.State.RestartCount = 0
			}
			c.State.RestartCount++
		}
		c.State.ExitCode, c.State.OOMKilled, c.State.FinishedAt = x.Code, x.OOMKilled, x.Time
		c.State.Pid, c.State.Endpoints, c.State.Ports, c.State.SandboxID, c.State.NetNS = 0, nil, nil, "", ""
		if h := c.State.Health; h != nil {
			copied := *h
			copied.Status = "unhealthy"
			c.State.Health = &copied
		}
		if x.Unknown {
			c.State.Error = "the exit code is unknown: nobody saw the end of the process"
		}
	})
	if err := s.save(e); err != nil {
		s.log.Error("container not saved", "container", c.ID, "error", err)
	}
	// Only now may the keeper forget: the code is on disk.
	s.tolerate(s.o.Runtime.Delete(ctx, c.ID, ""), "process not removed", c.ID)
	if x.OOMKilled {
		s.publish(c, "oom")
	}
	s.publish(c, "die", "exitCode", strconv.Itoa(x.Code), "execDuration", strconv.Itoa(int(ran.Seconds())))
	if ended != nil {
		close(ended)
	}
	s.notify(e, WaitResult{ExitCode: x.Code}, WaitNextExit, WaitNotRunning)
	switch {
	case again:
		s.restartAfter(e, delay)
	case c.Spec.AutoRemove && !kept:
		s.background(func(ctx context.Context) { s.removeByItself(context.WithoutCancel(ctx), e) })
	}
}

func (s *Service) closeRun(ctx context.Context, e *entry, c Container) {
	e.mu.Lock()
	left := make([]*execution, 0, len(e.execs))
	for _, x := range e.execs {
		left = append(left, x)
	}
	e.mu.Unlock()
	for _, x := range left {
		x.end(137)
	}
	s.tolerate(s.o.Networks.Close(ctx, c), "network not closed", c.ID)
	s.unmountAll(ctx, e)
}

// restarts decides by the policy whether a container is started again, and
// after which delay: 100 ms, doubled up to a minute.
func (s *Service) restarts(e *entry, c Container, x Exit, ran time.Duration, stopping bool) (bool, time.Duration) {
	p := c.Spec.Restart
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case stopping || c.State.StoppedByUser:
		return false, 0
	case p.Name == RestartAlways, p.Name == RestartUnlessStopped:
	case p.Name == RestartOnFailure && x.Code != 0 && (p.MaxRetries == 0 || c.State.RestartCount < p.MaxRetries || p.lasted(ran)):
	default:
		return false, 0
	}
	if e.delay == 0 || ran >= calmAfter {
		e.delay = firstDelay
	} else {
		e.delay = min(2*e.delay, longestDelay)
	}
	return true, e.delay
}

// lasted says that a run was long enough for the failures before it to be forgotten.
func (p RestartPolicy) lasted(ran time.Duration) bool { return p.Window > 0 && ran >= p.Window }

func (s *Service) restartAfter(e *entry, delay time.Duration) {
	wait, cancel := context.WithCancel(s.ctx)
	e.mu.Lock()
	e.cancel = cancel
	e.mu.Unlock()
	s.background(func(ctx context.Context) {
		defer cancel()
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-wait.Done():
			return
		}
		e.op.Lock()
		defer e.op.Unlock()
		c := e.snap.Load()
		if wait.Err() != nil || c.State.Status != Restarting {
			return
		}
		if err := s.start(context.WithoutCancel(ctx), e); err != nil {
			s.log.Warn("container not restarted", "container", c.ID, "error", err)
			s.retry(e)
		}
	})
}

// retry keeps trying a restart that failed, as its policy says; op is held.
func (s *Service) retry(e *entry) {
	c := *e.snap.Load()
	again, delay := s.restarts(e, c, Exit{Code: c.State.ExitCode}, 0, false)
	if !again {
		return
	}
	e.change(func(c *Container) { c.State.Status = Restarting; c.State.RestartCount++ })
	s.restartAfter(e, delay)
}
