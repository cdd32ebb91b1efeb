// Package event is the noun for what happened: one Event for each state
// change, a bounded history, and live subscriptions that a slow reader
// cannot grow without bound.
package event

import (
	"context"
	"sync"
	"time"
)

// Event is one thing that happened to one object.
type Event struct {
	Type       string // container, image, network, volume, daemon, builder
	Action     string // create, start, die, …; for exec_create and exec_start "exec_start: cmd"
	ID         string // the object's id (volumes: name; images: id or reference)
	Attributes map[string]string
	Time       time.Time
}

const (
	historySize = 1024 // events kept for `since`
	queueSize   = 1024 // events a slow subscriber may lag behind before it is dropped
)

// Bus takes events and hands them to subscribers. Its zero value works.
type Bus struct {
	mu      sync.Mutex
	history []Event
	subs    map[chan Event]struct{}
}

// Publish records the event and hands it to all subscribers. It never
// blocks: a subscriber that lags queueSize events behind is dropped.
func (b *Bus) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.history) >= 2*historySize {
		b.history = append([]Event(nil), b.history[len(b.history)-historySize:]...)
	}
	b.history = append(b.history, e)
	for ch := range b.subs {
		select {
		case ch <- e:
		default:
			delete(b.subs, ch)
			close(ch)
		}
	}
}

// Listeners counts those who are subscribed.
func (b *Bus) Listeners() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

// Subscribe returns the history since a time (none where since is zero) and
// a channel of what follows, with no gap between. The channel is closed when
// ctx ends or when the reader lags too far behind.
func (b *Bus) Subscribe(ctx context.Context, since time.Time) ([]Event, <-chan Event) {
	ch := make(chan Event, queueSize)
	b.mu.Lock()
	var past []Event
	if !since.IsZero() {
		kept := b.history
		if len(kept) > historySize {
			kept = kept[len(kept)-historySize:]
		}
		for _, e := range kept {
			if !e.Time.Before(since) {
				past = append(past, e)
			}
		}
	}
	if b.subs == nil {
		b.subs = make(map[chan Event]struct{})
	}
	b.subs[ch] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.subs[ch]; ok {
			delete(b.subs, ch)
			close(ch)
		}
	})
	return past, ch
}
