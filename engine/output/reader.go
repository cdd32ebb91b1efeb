package output

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	chunkSize  = 256 << 10              // bytes of output looked at once
	takeSize   = 1 << 20                // bytes taken from a pipe at once, and the size of a busy pipe
	pipeSize   = 64 << 10               // of a pipe that nobody has changed
	busyTakes  = 4                      // full pipes in a row after which a pipe is made larger
	spoolLimit = 512 << 10              // bytes of a spool after which what is logged is freed
	restLimit  = 4 << 20                // bytes taken of a pipe that is given up
	fullWait   = 200 * time.Millisecond // before a full file system is tried again
)

// buffer is borrowed while there is something to do.
type buffer = []byte

var buffers = sync.Pool{New: func() any { b := make(buffer, chunkSize+maxLine+4<<10); return &b }}

func putBuffer(b buffer) {
	if cap(b) > 2*chunkSize {
		return // a line of escapes has made it large
	}
	b = b[:cap(b)]
	buffers.Put(&b)
}

var entries = sync.Pool{New: func() any { return new([]entry) }}

func (r *reader) putLines() {
	lines := r.lines
	r.lines = nil
	if cap(lines) > 0 && cap(lines) <= chunkSize/4 {
		clear(lines)
		entries.Put(&lines)
	}
}

// reader moves one stream.
type reader struct {
	s     *pump
	index int      // 0 stdout, 1 stderr
	pipe  *os.File // nil when only a spool is left
	spool *os.File // nil where nothing is kept
	tty   bool

	size  int64 // bytes of the spool: all that were taken from the pipe
	read  int64 // bytes of it that were looked at
	told  int64 // bytes of it that subscribers have
	freed int64
	rest  []byte // of the spool before read: the beginning of a line
	since int64  // time of the first part of the line that rest belongs to; 0 for none
	parts partial
	lines []entry
	busy  int
}

// run moves bytes until the pipe ends.
func (r *reader) run() {
	defer r.close()
	if r.spool != nil {
		r.process(false) // a dead daemon may have left bytes in the spool
	}
	for !r.s.leaving.Load() {
		if err := r.take(); err != nil {
			break
		}
	}
	if r.s.leaving.Load() {
		return
	}
	if r.s.closing.Load() {
		r.takeRest()
	}
	r.process(true)
}

func (r *reader) close() {
	if r.spool != nil {
		_ = r.spool.Close()
	}
	if r.pipe != nil {
		_ = r.pipe.Close()
	}
}

// take waits for output and deals with it. Its error is the end.
func (r *reader) take() error {
	if r.spool == nil || r.tty {
		return r.takeDirect()
	}
	n, err := r.splice(true)
	switch {
	case err == nil && n == 0:
		return io.EOF
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOMEM):
		// The container waits until there is room; nothing is lost.
		r.s.log.complain("no room for a container's output: it waits", err)
		time.Sleep(fullWait)
		return nil
	case err != nil:
		return err
	}
	r.size += n
	r.grow(n)
	r.process(false)
	return nil
}

// splice moves what the pipe holds into the spool; it may wait for a first byte.
func (r *reader) splice(wait bool) (n int64, err error) {
	from, err := r.pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	to, err := r.spool.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	move := func(pipe uintptr) bool {
		if err := to.Control(func(file uintptr) { n, failed = spliceFrom(int(pipe), int(file), r.size, takeSize) }); err != nil {
			failed = err
		}
		return !errors.Is(failed, unix.EAGAIN)
	}
	if wait {
		err = from.Read(move)
	} else {
		err = from.Control(func(pipe uintptr) { move(pipe) })
	}
	if err != nil {
		return 0, err
	}
	return n, failed
}

// takeRest takes what a pipe holds that will not be read further.
func (r *reader) takeRest() {
	for taken := int64(0); r.spool != nil && !r.tty && taken < restLimit; {
		n, err := r.splice(false)
		if err != nil || n == 0 {
			return
		}
		taken += n
		r.size += n
		r.process(false)
	}
}

// grow makes a pipe larger that is always full: fewer turns, more in each.
func (r *reader) grow(n int64) {
	if n < pipeSize || n >= takeSize {
		r.busy = 0
		return
	}
	if r.busy++; r.busy != busyTakes {
		return
	}
	if raw, err := r.pipe.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, takeSize) }) // it goes on without
	}
}

// takeDirect reads: a terminal cannot be spliced, and what is not kept needs no spool.
func (r *reader) takeDirect() error {
	raw, err := r.pipe.SyscallConn()
	if err != nil {
		return err
	}
	var b buffer
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		p := buffers.Get().(*buffer)
		for {
			if n, failed = unix.Read(int(fd), (*p)[len(r.rest):chunkSize]); !errors.Is(failed, unix.EINTR) {
				break
			}
		}
		if errors.Is(failed, unix.EAGAIN) {
			putBuffer(*p)
			return false
		}
		b = *p
		return true
	})
	if err != nil {
		return err
	}
	defer putBuffer(b)
	if failed != nil || n <= 0 { // EIO: nobody holds the terminal's other end
		return errors.Join(io.EOF, failed)
	}
	if r.spool != nil {
		fresh := b[len(r.rest) : len(r.rest)+n]
		for {
			if _, err := r.spool.WriteAt(fresh, r.size); err == nil {
				break
			} else if r.s.leaving.Load() || r.s.closing.Load() {
				return err
			} else {
				r.s.log.complain("no room for a container's output: it waits", err)
				time.Sleep(fullWait)
			}
		}
		r.size += int64(n)
		r.process(false)
		return nil
	}
	r.size += int64(n)
	r.look(b, n, false)
	return nil
}

// process looks at what is new in the spool. At the end, what is left
// without a newline is logged too.
func (r *reader) process(end bool) {
	for r.spool != nil && r.read < r.size && !r.s.leaving.Load() {
		p := buffers.Get().(*buffer)
		b := *p
		n, err := r.spool.ReadAt(b[len(r.rest):len(r.rest)+int(min(r.size-r.read, chunkSize))], r.read)
		if n == 0 {
			putBuffer(b)
			r.s.log.complain("spool not read", err)
			r.read = r.size
			return
		}
		r.look(b, n, false)
		putBuffer(b)
	}
	if end && len(r.rest) > 0 {
		p := buffers.Get().(*buffer)
		r.look(*p, 0, true)
		putBuffer(*p)
	}
	if logged := r.read - int64(len(r.rest)); r.spool != nil && logged-r.freed > spoolLimit {
		if freeSpace(r.spool, r.freed, logged) == nil {
			r.freed = logged
		}
	}
}

// look deals with n bytes that are in b behind room for the rest: whole
// lines go to the log, and all to subscribers.
func (r *reader) look(b buffer, n int, end bool) {
	keep := len(r.rest)
	copy(b, r.rest)
	at := r.read - int64(keep) // of b's first byte
	used := r.split(b[:keep+n], at, end)
	if r.s.log != nil {
		r.s.log.append(r.index, r.lines, &r.since)
	} else {
		now := time.Now().UnixNano()
		for i := range r.lines {
			r.lines[i].nano = now
		}
	}
	if r.s.sink != nil {
		for i := range r.lines {
			r.s.sink.send(r.parts.next(r.lines[i].line))
		}
	}
	r.putLines()
	r.rest = append([]byte(nil), b[used:keep+n]...)
	r.read += int64(n)
	if r.spool == nil {
		r.told = r.read - int64(n)
	}
	if skip := max(0, r.told-(r.read-int64(n))); skip < int64(n) {
		r.s.tell(r.index, b[keep+int(skip):keep+n])
		r.told = r.read
	}
}

// split finds the lines of b, which begins at an offset of the spool, and
// says how many bytes they are.
func (r *reader) split(b []byte, offset int64, end bool) (used int) {
	if r.s.log == nil && r.s.sink == nil {
		return len(b)
	}
	r.lines = (*entries.Get().(*[]entry))[:0]
	for used < len(b) {
		rest := b[used:]
		i := bytes.IndexByte(rest[:min(len(rest), maxLine)], '\n') + 1
		switch {
		case i > 0:
		case len(rest) >= maxLine:
			i = maxLine
		case end:
			i = len(rest)
		default:
			return used
		}
		used += i
		r.lines = append(r.lines, entry{line{text: rest[:i:i], stderr: r.index == 1}, offset + int64(used)})
	}
	return used
}
