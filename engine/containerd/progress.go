package containerd

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/core/image"
)

// reportEvery is how often the counters of one layer are told.
const reportEvery = 100 * time.Millisecond

// meter tells how far one layer has come, not more often than reportEvery.
type meter struct {
	report func(image.Progress)
	id     string
	total  int64

	mu   sync.Mutex
	last time.Time
}

// say tells a new state at once.
func (m *meter) say(status string) { m.report(image.Progress{ID: m.id, Status: status}) }

// at tells the counter where it is time.
func (m *meter) at(status string, current int64) {
	m.mu.Lock()
	due := time.Since(m.last) >= reportEvery || current == m.total
	if due {
		m.last = time.Now()
	}
	m.mu.Unlock()
	if due {
		m.report(image.Progress{ID: m.id, Status: status, Current: current, Total: m.total})
	}
}

// counted reads what is fetched; it can seek where its source can.
type counted struct {
	io.ReadCloser
	offset int64
	tell   func(offset int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.offset += int64(n)
	if n > 0 {
		c.tell(c.offset)
	}
	return n, err
}

// Seek begins where an earlier fetch has stopped.
func (c *counted) Seek(offset int64, whence int) (int64, error) {
	s, ok := c.ReadCloser.(io.Seeker)
	if !ok {
		return 0, io.ErrNoProgress
	}
	at, err := s.Seek(offset, whence)
	c.offset = at
	return at, err
}

// serial reports one at a time: clients write to one stream.
func serial(report func(image.Progress)) func(image.Progress) {
	var mu sync.Mutex
	return func(p image.Progress) {
		mu.Lock()
		defer mu.Unlock()
		report(p)
	}
}

// locks hold one key at a time each, so that two pulls do not fetch or unpack
// the same thing twice.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *locks) Lock(ctx context.Context, key string) error {
	for {
		l.mu.Lock()
		busy := l.held[key]
		if busy == nil {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			l.held[key] = make(chan struct{})
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *locks) Unlock(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.held[key])
	delete(l.held, key)
}

// short is how progress names content.
func short(d digest.Digest) string {
	text := d.Encoded()
	return text[:min(12, len(text))]
}
