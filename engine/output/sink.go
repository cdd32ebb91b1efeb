package output

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-project/berth/core/container"
)

// redialGap is the time between attempts to reach a remote log that was not
// there when the daemon came back.
const redialGap = 5 * time.Second

// message is one line on its way to a remote log: text has no newline.
type message struct {
	text    []byte
	stderr  bool
	time    time.Time
	id      string // of the line its parts belong to; "" for a whole line
	ordinal int
	last    bool
}

// sink takes lines away from here. A message is valid until send returns;
// sends may come from two streams at once.
type sink interface {
	send(m message)
	close()
}

// sender is a driver's connection.
type sender interface {
	send(m message) error
	close() error
}

// partial numbers the parts of long lines.
type partial struct {
	id      string
	ordinal int
}

func (p *partial) next(l line) message {
	text, whole := bytes.CutSuffix(l.text, []byte{'\n'})
	m := message{text: text, stderr: l.stderr, time: time.Unix(0, l.nano).UTC(), last: whole}
	if !whole && p.id == "" {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails
		p.id = hex.EncodeToString(b[:])
		p.ordinal = 0
	}
	if p.id != "" {
		p.ordinal++
		m.id, m.ordinal = p.id, p.ordinal
	}
	if whole {
		p.id = ""
	}
	return m
}

// openSink connects a container to its remote log. Where a run continues, a
// log that cannot be reached is tried again later: the container goes on.
func openSink(s settings, c container.Container, cfg container.LogConfig, continues bool, logger *slog.Logger) (sink, error) {
	dial := func() (sender, error) { return s.remote(c, cfg) }
	to, err := dial()
	if err != nil && !continues {
		return nil, err
	}
	r := &remote{dial: dial, to: to, logger: logger.With("container", c.ID, "driver", s.driver)}
	if err != nil {
		r.failed(err)
	}
	if s.queue > 0 {
		return newQueue(r, s.queue), nil
	}
	return r, nil
}

// remote sends at once, one message after another.
type remote struct {
	dial   func() (sender, error)
	logger *slog.Logger

	mu       sync.Mutex // orders messages; held while one is sent
	to       sender     // nil until it can be reached
	dialed   time.Time
	reported time.Time
}

func (r *remote) failed(err error) {
	r.dialed = time.Now()
	if time.Since(r.reported) > complainGap {
		r.reported = time.Now()
		r.logger.Warn("remote log not written: lines are lost there", "error", err)
	}
}

func (r *remote) send(m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to == nil {
		if time.Since(r.dialed) < redialGap {
			return
		}
		to, err := r.dial()
		if err != nil {
			r.failed(err)
			return
		}
		r.to = to
	}
	if err := r.to.send(m); err != nil {
		r.failed(err)
	}
}

func (r *remote) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil {
		if err := r.to.close(); err != nil {
			r.failed(err)
		}
		r.to = nil
		r.dialed = time.Now()
	}
}

// queue sends from a goroutine of its own; what finds it full is dropped
// (mode=non-blocking).
type queue struct {
	to    *remote
	limit int64

	mu      sync.Mutex
	ready   sync.Cond
	waiting []message
	size    int64
	over    bool
	done    chan struct{}
}

func newQueue(to *remote, limit int64) *queue {
	q := &queue{to: to, limit: limit, done: make(chan struct{})}
	q.ready.L = &q.mu
	go q.run()
	return q
}

func (q *queue) send(m message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over || q.size > 0 && q.size+int64(len(m.text)) > q.limit {
		return
	}
	m.text = bytes.Clone(m.text)
	q.waiting = append(q.waiting, m)
	q.size += int64(len(m.text)) + 1
	q.ready.Signal()
}

func (q *queue) run() {
	defer close(q.done)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.waiting) == 0 && !q.over {
			q.ready.Wait()
		}
		if len(q.waiting) == 0 {
			return
		}
		batch := q.waiting
		q.waiting, q.size = nil, 0
		q.mu.Unlock()
		for _, m := range batch {
			q.to.send(m)
		}
		q.mu.Lock()
	}
}

// close waits a while for what is queued.
func (q *queue) close() {
	q.mu.Lock()
	q.over = true
	q.ready.Signal()
	q.mu.Unlock()
	t := time.NewTimer(redialGap)
	defer t.Stop()
	select {
	case <-q.done:
		q.to.close()
	case <-t.C:
		// The goroutine ends with the message it is at.
		go func() {
			<-q.done
			q.to.close()
		}()
	}
}
