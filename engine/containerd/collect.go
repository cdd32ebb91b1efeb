package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// Pace of the collector: what was removed leaves the disk soon, but a
// collection looks at all there is, so many removals share one, and a large
// engine is not busy with it.
const (
	collectAfter   = time.Second // from a removal to the collection
	collectRest    = 10          // times as long as the last one took, at least collectAfter
	collectAtMost  = time.Minute // the longest rest
	collectChanges = 100         // changes that ask for a collection without a removal
)

// database is what the collector needs of containerd's metadata.
type database interface {
	RegisterMutationCallback(func(removed bool))
	GarbageCollect(context.Context) (gc.Stats, error)
}

// collector frees what nothing refers to any more: contents, layers, leases
// that ended. It is in the place of containerd's scheduler, which forgets what
// is removed while a collection is at work: that stayed on the disk until
// somebody removed something else.
type collector struct {
	db    database
	after time.Duration
	need  chan struct{} // holds one: a collection is wanted
	now   chan struct{} // holds one: without a rest

	mu      sync.Mutex
	changes int
	waiters []chan gc.Stats
}

func newCollector(db database, after time.Duration) *collector {
	c := &collector{db: db, after: after, need: make(chan struct{}, 1), now: make(chan struct{}, 1)}
	db.RegisterMutationCallback(c.changed)
	put(c.need) // of the time before
	return c
}

// changed is called after each change of the metadata, under its lock.
func (c *collector) changed(removed bool) {
	c.mu.Lock()
	c.changes++
	want := removed || c.changes >= collectChanges
	c.mu.Unlock()
	if want {
		put(c.need)
	}
}

// ScheduleAndWait collects at once: of what ended before the call nothing is
// left after it. containerd's services for images and leases ask for it.
func (c *collector) ScheduleAndWait(ctx context.Context) (gc.Stats, error) {
	done := make(chan gc.Stats, 1)
	c.mu.Lock()
	c.waiters = append(c.waiters, done)
	c.mu.Unlock()
	put(c.now)
	select {
	case stats, ok := <-done:
		if !ok {
			return nil, errors.New("the collection of what is no longer used failed")
		}
		return stats, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *collector) run(ctx context.Context) {
	rest := c.after
	ended := time.Now()
	for {
		select {
		case <-c.now:
		case <-c.need:
			pause := time.NewTimer(max(c.after, rest-time.Since(ended)))
			select {
			case <-pause.C:
			case <-c.now:
			case <-ctx.Done():
			}
			pause.Stop()
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return
		}
		rest = c.collect(ctx)
		ended = time.Now()
	}
}

// collect works once and tells how long to rest. What changes from its
// beginning on asks for the next one.
func (c *collector) collect(ctx context.Context) (rest time.Duration) {
	c.mu.Lock()
	waiters := c.waiters
	c.waiters, c.changes = nil, 0
	c.mu.Unlock()
	select {
	case <-c.need:
	default:
	}
	began := time.Now()
	stats, err := c.db.GarbageCollect(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Error("collect what is no longer used")
		put(c.need)
	}
	for _, w := range waiters {
		if err == nil {
			w <- stats
		}
		close(w)
	}
	return min(max(c.after, collectRest*time.Since(began)), collectAtMost)
}

func put(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// registerCollector makes the collector the engine's scheduler of collections.
func registerCollector() {
	registry.Register(&plugin.Registration{
		Type: plugins.GCPlugin, ID: "scheduler",
		Requires: []plugin.Type{plugins.MetadataPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			p, err := ic.GetSingle(plugins.MetadataPlugin)
			if err != nil {
				return nil, err
			}
			db, ok := p.(database)
			if !ok {
				return nil, fmt.Errorf("metadata of type %T cannot be collected", p)
			}
			c := newCollector(db, collectAfter)
			go c.run(ic.Context)
			return c, nil
		},
	})
}
