package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
)

// pump is the output of one run of a container. It has one goroutine for each stream.
type pump struct {
	o     *Output
	c     container.Container
	dir   string
	log   *logFile // nil where lines are not kept
	sink  sink     // nil where they go nowhere else
	stdin *os.File

	readers  []*reader
	working  atomic.Int32
	drained  chan struct{}
	leaving  atomic.Bool // the daemon stops: nothing is flushed nor removed
	closing  atomic.Bool // what the pipes hold now is the rest
	stopTell func() bool

	mu   sync.Mutex
	subs []*subscription
	over bool
}

type subscription struct {
	out, err io.Writer
	done     chan struct{}
	once     sync.Once
}

func (s *subscription) end() { s.once.Do(func() { close(s.done) }) }

func spoolPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprint(i+1)) }

// open makes the reader of a stream; without a pipe it only has its spool.
func (s *pump) open(i int, f *os.File) error {
	r := &reader{s: s, index: i, pipe: f, tty: s.c.Spec.TTY}
	if s.log != nil {
		spool, err := os.OpenFile(spoolPath(s.dir, i), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		info, err := spool.Stat()
		if err != nil {
			return errors.Join(err, spool.Close())
		}
		r.spool, r.size = spool, info.Size()
		r.told = r.size // what came before is in the log for those who ask
		r.read = s.log.at.Offset[i]
		r.freed = r.read
	}
	s.readers = append(s.readers, r)
	return nil
}

func (s *pump) run(ctx context.Context) {
	s.working.Store(int32(len(s.readers)))
	if len(s.readers) == 0 {
		s.finish()
		return
	}
	s.stopTell = context.AfterFunc(ctx, func() {
		s.leaving.Store(true)
		s.wake()
	})
	for _, r := range s.readers {
		go func() {
			r.run()
			if s.working.Add(-1) == 0 {
				s.stopTell()
				s.finish()
			}
		}()
	}
}

// finish ends the log and all deliveries.
func (s *pump) finish() {
	if s.sink != nil {
		s.sink.close()
	}
	if s.log != nil {
		s.log.close()
	}
	if !s.leaving.Load() {
		// The spools go before the cursor: a cursor beside no spool says
		// that all is logged.
		for i := range 2 {
			_ = os.Remove(spoolPath(s.dir, i))
		}
		if err := os.RemoveAll(s.dir); err != nil {
			s.o.o.Logger.Warn("spool not removed", "container", s.c.ID, "error", err)
		}
	}
	s.o.mu.Lock()
	if s.o.now[s.c.ID] == s {
		delete(s.o.now, s.c.ID)
	}
	s.o.mu.Unlock()
	s.mu.Lock()
	s.over = true
	subs := s.subs
	s.subs = nil
	s.mu.Unlock()
	for _, sub := range subs {
		sub.end()
	}
	close(s.drained)
}

// abandon closes what a failed Pump has opened; the pipes stay the caller's.
func (s *pump) abandon() {
	for _, r := range s.readers {
		if r.spool != nil {
			_ = r.spool.Close()
		}
	}
	if s.sink != nil {
		s.sink.close()
	}
	if s.log != nil {
		s.log.close()
	}
}

// wake ends the readers' waiting.
func (s *pump) wake() {
	for _, r := range s.readers {
		_ = r.pipe.SetReadDeadline(time.Unix(1, 0)) // a closed one waits no more
	}
}

// Subscribe delivers output from now on.
func (s *pump) Subscribe(stdout, stderr io.Writer) (<-chan struct{}, func()) {
	sub := &subscription{out: stdout, err: stderr, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		sub.end()
		return sub.done, func() {}
	}
	s.subs = append(s.subs, sub)
	return sub.done, func() { s.drop(sub) }
}

func (s *pump) drop(sub *subscription) {
	s.mu.Lock()
	if i := slices.Index(s.subs, sub); i >= 0 {
		s.subs = slices.Delete(slices.Clone(s.subs), i, i+1) // readers may range over the old one
	}
	s.mu.Unlock()
	sub.end()
}

// tell gives subscribers bytes that are new. One that blocks holds this
// stream: the container waits, no memory grows.
func (s *pump) tell(stream int, chunk []byte) {
	s.mu.Lock()
	subs := s.subs[:len(s.subs):len(s.subs)] // grown or shrunk only by copying
	s.mu.Unlock()
	for _, sub := range subs {
		w := sub.out
		if stream == 1 {
			w = sub.err
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(chunk); err != nil {
			s.drop(sub)
		}
	}
}

// Stdin is the process's input, nil where it has none.
func (s *pump) Stdin() io.WriteCloser {
	if s.stdin == nil {
		return nil
	}
	return s.stdin
}

// Drained is closed when all output is in the log and delivered.
func (s *pump) Drained() <-chan struct{} { return s.drained }

// Close gives up what descendants of the first process may still hold open:
// what the pipes hold now is taken, and no more.
func (s *pump) Close() error {
	s.closing.Store(true)
	s.wake()
	if s.stdin != nil && !s.c.Spec.TTY {
		_ = s.stdin.Close()
	}
	return nil
}

// spliceFrom moves up to limit bytes of a pipe to a file at an offset,
// without waiting.
func spliceFrom(pipe, file int, offset int64, limit int) (int64, error) {
	for {
		n, err := unix.Splice(pipe, nil, file, &offset, limit, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
