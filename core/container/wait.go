package container

import (
	"context"
	"slices"

	"github.com/berth-project/berth/lib/fault"
)

type waiter struct {
	condition WaitCondition
	result    chan WaitResult
}

// Wait registers a wait; its result comes on the channel, which is closed
// without one when ctx ends first.
func (s *Service) Wait(ctx context.Context, id string, condition WaitCondition) (<-chan WaitResult, error) {
	e, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if condition == "" {
		condition = WaitNotRunning
	}
	switch condition {
	case WaitNotRunning, WaitNextExit, WaitRemoved:
	default:
		return nil, fault.Invalidf("invalid condition: %q", condition)
	}
	w := waiter{condition, make(chan WaitResult, 1)}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.snap.Load()
	if condition == WaitNotRunning && !c.isRunning() {
		w.result <- WaitResult{ExitCode: c.State.ExitCode, Err: ""}
		return w.result, nil
	}
	e.waiting = append(e.waiting, w)
	context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if i := slices.Index(e.waiting, w); i >= 0 {
			e.waiting = slices.Delete(e.waiting, i, i+1)
			close(w.result)
		}
	})
	return w.result, nil
}

// notify gives a result to all who wait for one of the conditions.
func (s *Service) notify(e *entry, r WaitResult, conditions ...WaitCondition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var left []waiter
	for _, w := range e.waiting {
		if slices.Contains(conditions, w.condition) {
			w.result <- r
			continue
		}
		left = append(left, w)
	}
	e.waiting = left
}
