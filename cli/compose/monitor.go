package compose

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

type summary = container.Summary

// tracked is a container that a monitor follows.
type tracked struct {
	id, name, short, service string
}

// monitor tells what happens to the containers of a project, by the engine's
// events. Its functions are called one at a time.
//
//	(created) ──start──> running ──die──> ended ──┐
//	                        ^                     │ restart policy, restart
//	                        └────────start────────┘
//
// It ends when every container it knows has ended for good, or been removed.
type monitor struct {
	t        *tool
	project  string
	services []string // none means all
	index    int      // only this number; 0: all
	forever  bool     // do not end with the last container: more are coming

	listed  func([]tracked)               // those there at the beginning
	started func(c tracked, since string) // since: the end of the run before, "" for the first
	exited  func(c tracked, code int, restarting bool)

	mu       sync.Mutex
	alive    map[string]tracked // run, or will run again
	ended    map[string]string  // id → when its last run ended
	begun    map[string]bool    // ids whose start was seen
	expected map[string]bool    // ids that were started, which the events have not told yet
	complete bool               // forever no longer holds
	wake     chan struct{}
	ready    chan struct{} // closed when nothing that begins from now on is missed
}

func (t *tool) newMonitor(project string, services []string) *monitor {
	return &monitor{t: t, project: project, services: services, alive: map[string]tracked{}, ended: map[string]string{}, begun: map[string]bool{}, expected: map[string]bool{}, wake: make(chan struct{}, 1), ready: make(chan struct{})}
}

// finish lets a monitor that runs forever end with its last container.
func (m *monitor) finish() {
	m.mu.Lock()
	m.complete = true
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// expect is told of a container that has just been started: its events may be
// on their way when all else is over.
func (m *monitor) expect(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, runs := m.alive[id]; !runs && !m.begun[id] {
		m.expected[id] = true
	}
}

func (m *monitor) watched(labels map[string]string) bool {
	if m.index > 0 && labels[labelNumber] != strconv.Itoa(m.index) {
		return false
	}
	return labels[labelOneOff] != "True" && (len(m.services) == 0 || slices.Contains(m.services, labels[labelService]))
}

// watch subscribes, lists, and goes on until the last container has ended.
func (m *monitor) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Events come first: nothing falls between the list and them.
	stream := m.t.docker.Client().Events(ctx, client.EventsListOptions{
		Filters: projectFilter(m.project).Add("type", "container"),
	})
	list, err := m.t.containers(ctx, m.project, selection{services: m.services, stopped: true, index: m.index})
	if err != nil {
		return err
	}
	var there []tracked
	m.mu.Lock()
	for _, c := range list {
		if c.Labels[labelHash] == "" {
			continue
		}
		k := tracked{c.ID, nameOf(c), shortName(c), c.Labels[labelService]}
		there = append(there, k)
		if c.State == container.StateRunning || c.State == container.StateRestarting || c.State == container.StatePaused {
			m.alive[c.ID] = k
		}
	}
	m.mu.Unlock()
	if m.listed != nil {
		m.listed(there)
	}
	close(m.ready)
	for !m.over() {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case err := <-stream.Err:
			if ctx.Err() != nil {
				return nil
			}
			if err == io.EOF {
				return fmt.Errorf("the daemon ended the stream of events: it may be restarting; run the command again")
			}
			return err
		case e := <-stream.Messages:
			m.on(ctx, e)
		}
	}
	return nil
}

func (m *monitor) over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.alive) == 0 && len(m.expected) == 0 && (!m.forever || m.complete)
}

func (m *monitor) on(ctx context.Context, e events.Message) {
	labels := e.Actor.Attributes
	if e.Action == events.ActionStart || e.Action == events.ActionDestroy {
		m.mu.Lock()
		m.begun[e.Actor.ID] = true
		delete(m.expected, e.Actor.ID)
		m.mu.Unlock()
	}
	if !m.watched(labels) {
		return
	}
	name := labels["name"]
	c := tracked{e.Actor.ID, name, shortNameOf(name, labels), labels[labelService]}
	m.mu.Lock()
	since := m.ended[c.id]
	m.mu.Unlock()
	switch e.Action {
	case events.ActionStart:
		m.set(c, true)
		if m.started != nil {
			m.started(c, since)
		}
	case events.ActionDie:
		// The engine says itself whether it will start it again.
		restarting := false
		full, err := m.t.docker.Client().ContainerInspect(ctx, c.id, client.ContainerInspectOptions{})
		if err == nil && full.Container.State != nil {
			restarting = full.Container.State.Restarting || full.Container.State.Running
		} else if err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
			m.t.warn("%s: %v", c.name, err)
		}
		m.mu.Lock()
		m.ended[c.id] = time.Unix(0, e.TimeNano).UTC().Format(time.RFC3339Nano)
		m.mu.Unlock()
		m.set(c, restarting)
		code, _ := strconv.Atoi(labels["exitCode"])
		if m.exited != nil {
			m.exited(c, code, restarting)
		}
	case events.ActionStop, events.ActionDestroy:
		// A stop that catches a container between two runs has no die.
		full, err := m.t.docker.Client().ContainerInspect(ctx, c.id, client.ContainerInspectOptions{})
		if e.Action == events.ActionDestroy || err != nil || full.Container.State == nil || !full.Container.State.Running && !full.Container.State.Restarting {
			m.set(c, false)
		}
	}
}

func (m *monitor) set(c tracked, alive bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if alive {
		m.alive[c.id] = c
	} else {
		delete(m.alive, c.id)
	}
}

func exitText(code int, restarting bool) string {
	if restarting {
		return fmt.Sprintf("exited with code %d (restarting)", code)
	}
	return fmt.Sprintf("exited with code %d", code)
}

// streams are the logs under way, at most one a container.
type streams struct {
	copy func(ctx context.Context, c tracked, since string) error

	mu   sync.Mutex
	wg   sync.WaitGroup
	byID map[string]chan struct{}
	err  error
}

func newStreams(copy func(context.Context, tracked, string) error) *streams {
	return &streams{copy: copy, byID: map[string]chan struct{}{}}
}

// open begins to copy a container's log, unless it is being copied. A stream
// that is about to end (the container stopped) is waited for first.
func (s *streams) open(ctx context.Context, c tracked, since string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, busy := s.byID[c.id]
	if busy && since == "" {
		select {
		case <-before:
		default:
			return
		}
	}
	ended := make(chan struct{})
	s.byID[c.id] = ended
	s.wg.Go(func() {
		defer close(ended)
		if busy {
			select {
			case <-before:
			case <-ctx.Done():
				return
			}
		}
		if err := s.copy(ctx, c, since); err != nil && ctx.Err() == nil {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
		}
	})
}

// drain waits, not for long, until an ended container's last line is written.
func (s *streams) drain(id string) {
	s.mu.Lock()
	ended := s.byID[id]
	s.mu.Unlock()
	if ended == nil {
		return
	}
	timer := time.NewTimer(drainLimit)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}

// wait ends when all streams have.
func (s *streams) wait(ctx context.Context) error {
	all := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(all)
	}()
	timer := time.NewTimer(drainLimit)
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
