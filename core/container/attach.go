package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/berth-project/berth/lib/fault"
)

// defaultDetachKeys leave an attachment and let the process go on.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// ErrDetached is how an attachment ends when its detach keys are typed.
var ErrDetached = errors.New("read escape sequence")

// gate is a writer that waits until its real writer is known, so that output
// may be subscribed to before anybody reads it.
type gate struct {
	ready chan struct{}
	once  sync.Once
	w     io.Writer
}

func newGate() *gate { return &gate{ready: make(chan struct{})} }

func (g *gate) open(w io.Writer) { g.once.Do(func() { g.w = w; close(g.ready) }) }

func (g *gate) Write(p []byte) (int, error) {
	<-g.ready
	if g.w == nil {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

// attachment is one client on one container.
type attachment struct {
	s        *Service
	e        *entry
	tty      bool
	o        AttachOptions
	keys     []byte
	out, err *gate

	bound chan struct{} // closed when the run has begun, or will not
	once  sync.Once

	stream Stream
	done   <-chan struct{}
	cancel func()
}

// Attach registers a client. On a container that does not run yet it is
// served from the first byte of the next run.
func (s *Service) Attach(_ context.Context, id string, o AttachOptions) (Attachment, error) {
	e, err := s.find(id)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(o.DetachKeys)
	if err != nil {
		return nil, err
	}
	c := e.snap.Load()
	if c.State.Status == Paused {
		return nil, fault.Conflictf("container %s is paused, unpause the container before attach", id)
	}
	if c.State.Status == Restarting {
		return nil, fault.Conflictf("container %s is restarting, wait until the container is running", id)
	}
	a := &attachment{s: s, e: e, tty: c.Spec.TTY, o: o, keys: keys, out: newGate(), err: newGate(), bound: make(chan struct{})}
	if !o.Stream {
		a.fail()
		return a, nil
	}
	e.mu.Lock()
	stream := e.stream
	if stream == nil {
		e.pending = append(e.pending, a)
	}
	e.mu.Unlock()
	if stream != nil {
		a.bind(stream)
	}
	s.publish(*c, "attach")
	return a, nil
}

func (a *attachment) TTY() bool { return a.tty }

// bind subscribes to a run's output.
func (a *attachment) bind(stream Stream) {
	a.once.Do(func() {
		var out, errs io.Writer
		if a.o.Stdout {
			out = a.out
		}
		if a.o.Stderr {
			errs = a.err
		}
		a.stream = stream
		a.done, a.cancel = stream.Subscribe(out, errs)
		close(a.bound)
	})
}

// fail says that no run comes.
func (a *attachment) fail() { a.once.Do(func() { close(a.bound) }) }

// Close gives the attachment up.
func (a *attachment) Close() {
	a.fail()
	a.e.mu.Lock()
	for i, p := range a.e.pending {
		if p == a {
			a.e.pending = append(a.e.pending[:i:i], a.e.pending[i+1:]...)
			break
		}
	}
	a.e.mu.Unlock()
	if a.cancel != nil {
		a.cancel()
	}
	a.out.open(nil)
	a.err.open(nil)
}

// Serve copies until the process ends, the client leaves or detaches.
func (a *attachment) Serve(stdin io.Reader, stdout, stderr io.Writer) error {
	defer a.Close()
	if a.o.Logs {
		if err := a.replay(stdout, stderr); err != nil {
			return err
		}
	}
	a.out.open(stdout)
	a.err.open(stderr)
	left := make(chan error, 1)
	if stdin != nil && a.o.Stdin && a.o.Stream {
		go func() { left <- a.feed(stdin) }()
	}
	select {
	case <-a.bound:
	case err := <-left:
		return err
	case <-a.s.ctx.Done():
		return fault.Unavailablef("the daemon is stopping")
	}
	if a.stream == nil {
		return nil
	}
	for {
		select {
		case <-a.done:
			return nil
		case err := <-left:
			if err != nil {
				return err
			}
			left = nil // the input has ended; the output goes on
		case <-a.s.ctx.Done():
			return fault.Unavailablef("the daemon is stopping")
		}
	}
}

func (a *attachment) replay(stdout, stderr io.Writer) error {
	return a.s.o.Output.Logs(a.s.ctx, *a.e.snap.Load(), LogOptions{Stdout: a.o.Stdout, Stderr: a.o.Stderr, Tail: -1}, func(r LogRecord) error {
		w := stdout
		if r.Stderr {
			w = stderr
		}
		_, err := w.Write(r.Line)
		return err
	})
}

// feed copies the client's input. Its end ends the process's input where the
// container was made so (StdinOnce), as Docker does.
func (a *attachment) feed(stdin io.Reader) error {
	<-a.bound
	if a.stream == nil {
		return nil
	}
	in := a.stream.Stdin()
	if in == nil {
		_, err := io.Copy(io.Discard, stdin)
		return err
	}
	if a.tty {
		stdin = &detacher{r: stdin, keys: a.keys}
	}
	_, err := io.Copy(in, stdin)
	if errors.Is(err, ErrDetached) {
		return err
	}
	c := a.e.snap.Load()
	if c.Spec.StdinOnce && !a.tty {
		_ = in.Close()
		a.s.tolerate(ignoreMissing(a.s.o.Runtime.CloseStdin(context.WithoutCancel(a.s.ctx), c.ID, "")), "input not closed", c.ID)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}

// detacher watches input for the detach keys. The beginning of the sequence
// is held back until it is clear that it is none.
type detacher struct {
	r    io.Reader
	keys []byte
	seen int
	rest []byte
}

func (d *detacher) Read(p []byte) (int, error) {
	if len(d.rest) > 0 {
		n := copy(p, d.rest)
		d.rest = d.rest[n:]
		return n, nil
	}
	buf := make([]byte, max(1, len(p)-len(d.keys)))
	n, err := d.r.Read(buf)
	var out bytes.Buffer
	for _, b := range buf[:n] {
		switch {
		case len(d.keys) > 0 && b == d.keys[d.seen]:
			d.seen++
			if d.seen == len(d.keys) {
				return 0, ErrDetached
			}
		default:
			out.Write(d.keys[:d.seen])
			d.seen = 0
			if len(d.keys) > 0 && b == d.keys[0] {
				d.seen = 1
				continue
			}
			out.WriteByte(b)
		}
	}
	if err != nil {
		out.Write(d.keys[:d.seen])
		d.seen = 0
	}
	d.rest = out.Bytes()
	k := copy(p, d.rest)
	d.rest = d.rest[k:]
	if len(d.rest) > 0 {
		err = nil
	}
	return k, err
}

// parseKeys reads "ctrl-p,ctrl-q" or "a,b".
func parseKeys(text string) ([]byte, error) {
	if text == "" {
		text = defaultDetachKeys
	}
	var keys []byte
	for _, k := range strings.Split(text, ",") {
		if letter, ok := strings.CutPrefix(k, "ctrl-"); ok && len(letter) == 1 {
			l := letter[0]
			switch {
			case l >= 'a' && l <= 'z':
				keys = append(keys, l-'a'+1)
				continue
			case strings.IndexByte("@[\\]^_", l) >= 0:
				keys = append(keys, l&0x1f)
				continue
			}
		}
		if len(k) != 1 {
			return nil, fault.Invalidf("invalid detach keys (%s) provided", text)
		}
		keys = append(keys, k[0])
	}
	return keys, nil
}

// Logs emits a container's log.
func (s *Service) Logs(ctx context.Context, id string, o LogOptions, emit func(LogRecord) error) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	c := *e.snap.Load()
	if o.Follow && !c.isRunning() {
		o.Follow = false
	}
	return s.o.Output.Logs(ctx, c, o, emit)
}

// Resize sets the size of a container's terminal.
func (s *Service) Resize(ctx context.Context, id string, height, width uint16) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	c := *e.snap.Load()
	if !c.alive() {
		return notRunning(c)
	}
	if err := s.o.Runtime.Resize(ctx, c.ID, "", height, width); err != nil {
		return err
	}
	s.publish(c, "resize", "height", itoa(height), "width", itoa(width))
	return nil
}
