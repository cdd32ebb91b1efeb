package container

import (
	"bytes"
	"context"
	"sync"
	"syscall"
	"time"
)

// Bounds of health probes.
const (
	healthLog    = 5    // results kept
	healthOutput = 4096 // bytes of a probe's output kept
)

func (h *HealthCheck) enabled() bool {
	return h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// watchHealth probes a running container until its run ends.
func (s *Service) watchHealth(e *entry) {
	c := e.snap.Load()
	if !c.Spec.Health.enabled() {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	e.mu.Lock()
	e.cancel = cancel
	ended := e.ended
	e.mu.Unlock()
	h := *c.Spec.Health
	s.background(func(context.Context) {
		defer cancel()
		started := time.Now()
		timer := time.NewTimer(0)
		if !timer.Stop() {
			<-timer.C
		}
		for {
			interval := orDefault(h.Interval, HealthInterval)
			if st := e.snap.Load().State.Health; st != nil && st.Status == "starting" && time.Since(started) < h.StartPeriod {
				interval = min(interval, orDefault(h.StartInterval, HealthStartInterval))
			}
			timer.Reset(interval)
			select {
			case <-timer.C:
			case <-ended:
				return
			case <-ctx.Done():
				return
			}
			if e.snap.Load().State.Status != Running {
				continue
			}
			result := s.probe(ctx, e, h)
			if ctx.Err() != nil {
				return
			}
			s.judge(e, h, result, time.Since(started) < h.StartPeriod)
		}
	})
}

// limited keeps the first bytes written to it.
type limited struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := healthOutput - l.buf.Len(); room > 0 {
		l.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (s *Service) probe(ctx context.Context, e *entry, h HealthCheck) HealthResult {
	cmd := h.Test[1:]
	if h.Test[0] == "CMD-SHELL" {
		shell := e.snap.Load().Spec.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		cmd = append(append([]string(nil), shell...), cmd...)
	}
	timeout := orDefault(h.Timeout, HealthTimeout)
	r := HealthResult{Start: time.Now(), ExitCode: -1}
	defer func() { r.End = time.Now() }()
	fail := func(err error) HealthResult {
		r.End, r.Output = time.Now(), err.Error()
		return r
	}
	id, err := s.ExecCreate(ctx, string(e.snap.Load().ID), ExecSpec{Cmd: cmd, Stdout: true, Stderr: true})
	if err != nil {
		return fail(err)
	}
	defer s.dropExec(e, id)
	a, err := s.ExecStart(ctx, id, false, nil)
	if err != nil {
		return fail(err)
	}
	var out limited
	served := make(chan error, 1)
	go func() { served <- a.Serve(nil, &out, &out) }()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-served:
	case <-timer.C:
		s.tolerate(ignoreMissing(s.o.Runtime.Kill(context.WithoutCancel(ctx), e.snap.Load().ID, id, syscall.SIGKILL)), "probe not killed", e.snap.Load().ID)
		<-served
		r.End = time.Now()
		r.Output = "Health check exceeded timeout (" + timeout.String() + ")"
		return r
	}
	x, err := s.ExecGet(ctx, id)
	if err == nil && x.ExitCode != nil {
		r.ExitCode = *x.ExitCode
	}
	r.End = time.Now()
	out.mu.Lock()
	r.Output = out.buf.String()
	out.mu.Unlock()
	return r
}

func (s *Service) dropExec(e *entry, id string) {
	s.mu.Lock()
	x := s.execs[id]
	delete(s.execs, id)
	s.mu.Unlock()
	e.mu.Lock()
	delete(e.execs, id)
	e.mu.Unlock()
	if x != nil {
		x.mu.Lock()
		x.dropped()
		x.mu.Unlock()
	}
}

// judge adds a result to the state: one success makes healthy, a row of
// failures unhealthy; in the start period failures do not count.
func (s *Service) judge(e *entry, h HealthCheck, r HealthResult, starting bool) {
	retries := h.Retries
	if retries == 0 {
		retries = HealthRetries
	}
	before := ""
	c := e.change(func(c *Container) {
		if c.State.Health == nil {
			return
		}
		st := *c.State.Health
		before = st.Status
		st.Log = append(append([]HealthResult(nil), st.Log...), r)
		if len(st.Log) > healthLog {
			st.Log = st.Log[len(st.Log)-healthLog:]
		}
		if r.ExitCode == 0 {
			st.Status, st.FailingStreak = "healthy", 0
		} else if !starting || st.Status != "starting" {
			st.FailingStreak++
			if st.FailingStreak >= retries {
				st.Status = "unhealthy"
			}
		}
		c.State.Health = &st
	})
	if st := c.State.Health; st != nil && st.Status != before {
		s.tolerate(s.save(e), "container not saved", c.ID)
		s.publish(c, "health_status: "+st.Status)
	}
}
