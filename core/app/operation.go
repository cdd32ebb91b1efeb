package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

const (
	lineLimit      = 50_000 // lines kept of one operation: of more, those about bytes are dropped
	operationLimit = 64     // operations that are remembered after their end
)

// operation is an Operation with the lines that tell of it. Lines are kept, so
// that a client may come late or twice.
type operation struct {
	Operation
	cancel context.CancelFunc

	mu     sync.Mutex
	lines  []Progress
	more   chan struct{} // closed when a line is added
	ended  bool
	change bool // a step was done
}

func newOperation(app, verb string, cancel context.CancelFunc) *operation {
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails
	return &operation{Operation: Operation{ID: hex.EncodeToString(b), App: app, Verb: verb, Started: time.Now()}, cancel: cancel, more: make(chan struct{})}
}

func (o *operation) running() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.ended
}

// state gives a copy for others to read.
func (o *operation) state() Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Operation
}

// tell adds a line.
func (o *operation) tell(p Progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || len(o.lines) >= lineLimit && p.Result == nil && (p.Status == Working || p.Part != "") {
		return
	}
	p.Seq, p.Operation, p.Time = len(o.lines)+1, o.ID, time.Now()
	o.lines = append(o.lines, p)
	if p.Result != nil {
		o.ended, o.Ended, o.Result = true, p.Time, p.Result
	}
	close(o.more)
	o.more = make(chan struct{})
}

// endedAt is zero while it runs.
func (o *operation) endedAt() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Ended
}

// step tells how one step stands.
func (o *operation) step(s Step, status Status, container, text string) {
	if status == Done {
		o.mu.Lock()
		o.change = o.change || s.Action != Wait
		o.mu.Unlock()
	}
	if container == "" {
		container = s.Container
	}
	name := s.Name
	if s.Final != "" && s.Action == Rename {
		name = s.Final
	}
	o.tell(Progress{Step: s.ID, Action: s.Action, Kind: s.Kind, Name: name, Service: s.Service, Container: container, Status: status, Text: text})
}

// follow hands out the lines after the given number until the last, or until ctx ends.
func (o *operation) follow(ctx context.Context, after int, emit func(Progress) error) error {
	for {
		o.mu.Lock()
		var lines []Progress
		if after < len(o.lines) {
			lines = o.lines[max(after, 0):]
		}
		more, ended := o.more, o.ended
		o.mu.Unlock()
		for _, l := range lines {
			if err := emit(l); err != nil {
				return err
			}
		}
		after = max(after, 0) + len(lines)
		if ended {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
