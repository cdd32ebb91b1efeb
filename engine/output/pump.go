package output

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
)

// pump is the output of one run of a container.
type pump struct {
	o     *Output
	c     container.Container
	dir   string
	log   *writer // nil with the driver none
	stdin *os.File

	work    sync.WaitGroup
	drained chan struct{}
	pipes   []*os.File

	mu   sync.Mutex
	subs []*subscription
	over bool
}

// reader moves one stream.
type reader struct {
	s      *pump
	index  int // 0 stdout, 1 stderr
	pipe   *os.File
	spool  *os.File
	size   int64 // of the spool: bytes taken from the pipe
	logged int64 // bytes of it that are in the log
	told   int64 // bytes of it that subscribers have
	freed  int64
	tty    bool
	buf    []byte
}

type subscription struct {
	out, err io.Writer
	done     chan struct{}
	once     sync.Once
}

func (s *subscription) end() { s.once.Do(func() { close(s.done) }) }

func (s *pump) open(i int, f *os.File) (*reader, error) {
	spool, err := os.OpenFile(filepath.Join(s.dir, fmt.Sprint(i+1)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := spool.Stat()
	if err != nil {
		return nil, errors.Join(err, spool.Close())
	}
	r := &reader{s: s, index: i, pipe: f, spool: spool, size: info.Size(), tty: s.c.Spec.TTY}
	r.told = r.size // what came before is in the log for those who ask
	if s.log != nil {
		r.logged = s.log.at.Offset[i]
		r.freed = r.logged
	} else {
		r.logged = r.size
	}
	s.pipes = append(s.pipes, f)
	return r, nil
}

func (s *pump) run(readers []*reader) {
	for _, r := range readers {
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			r.run()
		}()
	}
	go func() {
		s.work.Wait()
		s.finish()
	}()
}

func (s *pump) finish() {
	if s.log != nil {
		s.log.close()
	}
	s.mu.Lock()
	s.over = true
	for _, sub := range s.subs {
		sub.end()
	}
	s.subs = nil
	s.mu.Unlock()
	s.o.mu.Lock()
	if s.o.now[s.c.ID] == s {
		delete(s.o.now, s.c.ID)
	}
	s.o.mu.Unlock()
	if err := os.RemoveAll(s.dir); err != nil {
		s.o.o.Logger.Warn("spool not removed", "container", s.c.ID, "error", err)
	}
	close(s.drained)
}

// run moves bytes until the pipe ends.
func (r *reader) run() {
	defer r.spool.Close()
	defer r.pipe.Close()
	// A dead daemon may have left bytes in the spool.
	r.process(false)
	for {
		n, err := r.take()
		if n > 0 {
			r.size += n
			r.process(false)
		}
		if err != nil || n == 0 {
			break
		}
	}
	r.process(true)
}

// take moves what the pipe holds into the spool, waiting for the first byte.
// 0 is the end.
func (r *reader) take() (n int64, err error) {
	raw, err := r.pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	if r.tty {
		return r.takeTTY()
	}
	dst, err := r.spool.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(from uintptr) bool {
		off := r.size
		controlled := dst.Control(func(to uintptr) {
			for {
				n, failed = unix.Splice(int(from), nil, int(to), &off, spliceChunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
				if failed != unix.EINTR {
					return
				}
			}
		})
		if controlled != nil {
			failed = controlled
			return true
		}
		return failed != unix.EAGAIN
	})
	if err != nil {
		return 0, err
	}
	return n, failed
}

func (r *reader) takeTTY() (int64, error) {
	if r.buf == nil {
		r.buf = make([]byte, 32<<10)
	}
	n, err := r.pipe.Read(r.buf)
	if n > 0 {
		if _, werr := r.spool.WriteAt(r.buf[:n], r.size); werr != nil {
			return 0, werr
		}
		return int64(n), nil
	}
	return 0, err // EIO: nobody holds the other end any more
}

// process logs whole lines of the spool and gives subscribers what is new.
// At the end, what is left without a newline is logged too.
func (r *reader) process(end bool) {
	s := r.s
	for r.logged < r.size {
		chunk := make([]byte, min(r.size-r.logged, spliceChunk))
		n, err := r.spool.ReadAt(chunk, r.logged)
		if err != nil && !errors.Is(err, io.EOF) {
			s.o.o.Logger.Error("spool not read", "container", s.c.ID, "error", err)
			return
		}
		chunk = chunk[:n]
		used := r.record(chunk, end && r.logged+int64(n) == r.size)
		if used == 0 {
			break
		}
		r.logged += used
	}
	r.tell()
	if low := min(r.logged, r.told); s.log == nil || low-r.freed > spoolLimit {
		if s.log == nil {
			low = r.told
		}
		if low > r.freed {
			// Offsets stay; the memory is given back.
			if err := unix.Fallocate(int(r.spool.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.freed, low-r.freed); err == nil {
				r.freed = low
			}
		}
	}
}

// record writes the lines of a chunk to the log and returns how many bytes they are.
func (r *reader) record(chunk []byte, end bool) (used int64) {
	s := r.s
	if s.log == nil {
		return int64(len(chunk))
	}
	now := time.Now()
	var batch []container.LogRecord
	for len(chunk) > 0 {
		i := bytes.IndexByte(chunk, '\n') + 1
		switch {
		case i > maxLine || i == 0 && len(chunk) >= maxLine:
			i = maxLine
		case i == 0 && end:
			i = len(chunk)
		case i == 0:
			i = -1
		}
		if i < 0 {
			break
		}
		batch = append(batch, container.LogRecord{Stderr: r.index == 1, Time: now, Line: chunk[:i]})
		chunk = chunk[i:]
		used += int64(i)
	}
	if len(batch) > 0 {
		if err := s.log.append(batch, r.index, r.logged+used); err != nil {
			s.o.o.Logger.Error("log not written", "container", s.c.ID, "error", err)
		}
	}
	return used
}

// tell gives subscribers the bytes that are new. One that blocks holds this
// stream: the container waits, no memory grows.
func (r *reader) tell() {
	s := r.s
	s.mu.Lock()
	subs := slices.Clone(s.subs)
	s.mu.Unlock()
	if len(subs) == 0 {
		r.told = r.size
		return
	}
	for r.told < r.size {
		chunk := make([]byte, min(r.size-r.told, spliceChunk))
		n, err := r.spool.ReadAt(chunk, r.told)
		if n == 0 && err != nil {
			return
		}
		r.told += int64(n)
		for _, sub := range subs {
			w := sub.out
			if r.index == 1 {
				w = sub.err
			}
			if w == nil {
				continue
			}
			if _, err := w.Write(chunk[:n]); err != nil {
				s.drop(sub)
			}
		}
	}
}

func (s *pump) drop(sub *subscription) {
	s.mu.Lock()
	if i := slices.Index(s.subs, sub); i >= 0 {
		s.subs = slices.Delete(slices.Clone(s.subs), i, i+1)
	}
	s.mu.Unlock()
	sub.end()
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

// Stdin is the process's input, nil where it has none.
func (s *pump) Stdin() io.WriteCloser {
	if s.stdin == nil {
		return nil
	}
	return s.stdin
}

// Drained is closed when all output is in the log and delivered.
func (s *pump) Drained() <-chan struct{} { return s.drained }

// Close gives up what descendants of the first process may still hold open.
func (s *pump) Close() error {
	for _, f := range s.pipes {
		// Ends the wait for more.
		_ = f.SetReadDeadline(time.Now())
	}
	if s.stdin != nil && !s.c.Spec.TTY {
		_ = s.stdin.Close()
	}
	return nil
}
