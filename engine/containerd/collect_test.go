package containerd

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
)

type stats struct{}

func (stats) Elapsed() time.Duration { return 0 }

// metadata lets the test see and answer each collection.
type metadata struct {
	changed func(bool)
	began   chan struct{}
	end     chan error
}

func (m *metadata) RegisterMutationCallback(f func(bool)) { m.changed = f }

func (m *metadata) GarbageCollect(context.Context) (gc.Stats, error) {
	m.began <- struct{}{}
	if err := <-m.end; err != nil {
		return nil, err
	}
	return stats{}, nil
}

func TestCollector(t *testing.T) {
	m := &metadata{began: make(chan struct{}), end: make(chan error)}
	c := newCollector(m, time.Nanosecond)
	ended := make(chan struct{})
	go func() { c.run(t.Context()); close(ended) }()
	t.Cleanup(func() { <-ended })

	<-m.began // at the start
	// What is removed while a collection is at work is in the next one.
	m.changed(true)
	m.end <- nil
	<-m.began
	m.end <- nil

	// A change that removes nothing asks for none, a hundred do.
	for range collectChanges - 1 {
		m.changed(false)
	}
	if len(c.need) != 0 {
		t.Error("changes that remove nothing ask for a collection")
	}
	m.changed(false)
	<-m.began
	m.end <- nil

	// Who waits gets a collection that began after the call, or its failure.
	told := make(chan error)
	wait := func() {
		_, err := c.ScheduleAndWait(t.Context())
		told <- err
	}
	go wait()
	<-m.began
	m.end <- errors.New("disk full")
	if err := <-told; err == nil {
		t.Error("a failed collection was told as done")
	}
	<-m.began // a collection that failed is tried again
	m.end <- nil
	go wait()
	<-m.began
	m.end <- nil
	if err := <-told; err != nil {
		t.Error(err)
	}
}
