package keeper

import (
	"context"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// duplicates are the client's own descriptors of a process's streams, kept so
// that nothing breaks when the keeper dies and its successor can have them
// back. They are plain numbers: the poller need not watch them.
type duplicates struct {
	tty, stdin, stdout, stderr int // -1: none
}

// Duplicate gives descriptors of the same streams, which last when the first are closed.
func (p Pipes) Duplicate() Pipes {
	one := func(f *os.File) *os.File {
		if fd := duplicate(f); fd >= 0 {
			return os.NewFile(uintptr(fd), f.Name())
		}
		return nil
	}
	return Pipes{one(p.TTY), one(p.Stdin), one(p.Stdout), one(p.Stderr)}
}

func duplicate(f *os.File) int {
	fd := -1
	if f == nil {
		return fd
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fd
	}
	_ = raw.Control(func(from uintptr) {
		if n, err := unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3); err == nil {
			fd = n
		}
	})
	return fd
}

func (d duplicates) each(do func(fd int)) {
	for _, fd := range []int{d.tty, d.stdin, d.stdout, d.stderr} {
		if fd >= 0 {
			do(fd)
		}
	}
}

// pipes gives further duplicates as files, to be closed by the caller.
func (d duplicates) pipes() (p Pipes) {
	file := func(fd int) *os.File {
		if fd < 0 {
			return nil
		}
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil
		}
		return os.NewFile(uintptr(n), "pipe")
	}
	p.TTY, p.Stdin, p.Stdout, p.Stderr = file(d.tty), file(d.stdin), file(d.stdout), file(d.stderr)
	return p
}

// hold keeps duplicates of p until the process is deleted.
func (c *Client) hold(r Ref, p Pipes) {
	if p == (Pipes{}) {
		return
	}
	d := duplicates{duplicate(p.TTY), duplicate(p.Stdin), duplicate(p.Stdout), duplicate(p.Stderr)}
	r.ID = c.prefix + r.ID
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release(r)
	if c.closed {
		d.each(func(fd int) { _ = unix.Close(fd) })
		return
	}
	c.held[r] = d
}

// release closes what is held of a process (as the wire names it). c.mu is held.
func (c *Client) release(r Ref) {
	if d, ok := c.held[r]; ok {
		d.each(func(fd int) { _ = unix.Close(fd) })
		delete(c.held, r)
	}
}

// drop lets go of a deleted process, with its execs where it is a first one.
func (c *Client) drop(r Ref) {
	r.ID = c.prefix + r.ID
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release(r)
	if r.Exec != "" {
		return
	}
	for other := range c.held {
		if other.ID == r.ID {
			c.release(other)
		}
	}
}

// dropStdin lets go of a process's input, which ends only with its last holder.
func (c *Client) dropStdin(r Ref) {
	r.ID = c.prefix + r.ID
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.held[r]; ok && d.stdin >= 0 {
		_ = unix.Close(d.stdin)
		d.stdin = -1
		c.held[r] = d
	}
}

// own takes the realm off a wire's id; it tells whether it is this client's realm.
func (c *Client) own(r *Ref) bool {
	if c.prefix == "" {
		return !strings.Contains(r.ID, "+")
	}
	id, ok := strings.CutPrefix(r.ID, c.prefix)
	r.ID = id
	return ok
}

// queue passes exits on in order and never holds up who brings them: the
// reader of exits may itself be waiting for an answer.
type queue struct {
	out  chan Exit
	wake chan struct{}

	mu   sync.Mutex
	list []Exit
}

func newQueue() *queue { return &queue{out: make(chan Exit), wake: make(chan struct{}, 1)} }

func (q *queue) push(e Exit) {
	q.mu.Lock()
	q.list = append(q.list, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) run(ctx context.Context) {
	defer close(q.out)
	for {
		q.mu.Lock()
		list := q.list
		q.list = nil
		q.mu.Unlock()
		for _, e := range list {
			select {
			case q.out <- e:
			case <-ctx.Done():
				return
			}
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}
