package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-project/berth/lib/fault"
)

// startLimit is how long a keeper may take until it answers.
const startLimit = 10 * time.Second

// Options of a Client.
type Options struct {
	Dir    string // the keeper's own folder, in the engine's run folder
	Binary string // path of berth-keeper
	Logger *slog.Logger
}

// Client speaks to the keeper of one engine. All its methods are safe for
// concurrent use. When the keeper dies another is started, which adopts what runs.
type Client struct {
	o     Options
	exits chan Exit

	// adopt gives the pipes the daemon still holds to a new keeper.
	adopt func() []Adoption

	mu      sync.Mutex
	wire    *Wire
	seq     uint64
	pending map[uint64]chan answer
	closed  bool
	readers sync.WaitGroup
}

// Adoption is one process's pipes for a new keeper.
type Adoption struct {
	Ref   Ref
	Pipes Pipes
}

type answer struct {
	frame Frame
	files []*os.File
	err   error
}

// Connect finds the keeper or starts one. held gives the pipes that the daemon
// holds when a dead keeper is replaced; it may be nil.
func Connect(ctx context.Context, o Options, held func() []Adoption) (*Client, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{o: o, exits: make(chan Exit, 1024), pending: map[uint64]chan answer{}, adopt: held}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := c.ensure(ctx, true); err != nil {
		return nil, err
	}
	return c, nil
}

// Exits delivers the end of each process, first those that were not
// acknowledged before. An exit may come again after a reconnection until Ack.
func (c *Client) Exits() <-chan Exit { return c.exits }

// Close leaves the keeper running.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	w := c.wire
	c.mu.Unlock()
	var err error
	if w != nil {
		err = w.Close()
	}
	c.readers.Wait()
	return err
}

// ensure connects, starting a keeper where none answers.
func (c *Client) ensure(ctx context.Context, first bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		if conn, err = c.spawn(ctx); err != nil {
			return fmt.Errorf("start keeper: %w", err)
		}
	}
	w := NewWire(conn)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return errors.Join(fault.Unavailablef("the keeper's client is closed"), w.Close())
	}
	c.wire = w
	c.readers.Add(1)
	c.mu.Unlock()
	go c.read(w)

	v, err := c.Version(ctx)
	if err != nil {
		return err
	}
	if v.Protocol != Version {
		return fault.Unavailablef("the running keeper (pid %d) speaks protocol %d and this daemon %d: stop all containers and the keeper, then start again", v.Pid, v.Protocol, Version)
	}
	if !first && c.adopt != nil {
		for _, a := range c.adopt() {
			set, files := a.Pipes.List()
			if len(files) == 0 {
				continue
			}
			if err := c.call(ctx, opAdopt, AdoptRequest{Ref: a.Ref, Streams: set}, nil, nil, files...); err != nil && !errors.Is(err, fault.ErrNotFound) {
				c.o.Logger.Warn("pipes not given back to keeper", "container", a.Ref.ID, "error", err)
			}
		}
	}
	return c.call(ctx, opSubscribe, nil, nil, nil)
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(c.o.Dir, "keeper.sock"))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// spawn starts a keeper in a session of its own. It tells by closing its end
// of a pipe that it listens.
func (c *Client) spawn(ctx context.Context) (*net.UnixConn, error) {
	log, err := os.OpenFile(filepath.Join(c.o.Dir, "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command(c.o.Binary, "--dir", c.o.Dir, "--ready-fd", "3")
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{child}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = child.Close()
	if err != nil {
		return nil, err
	}
	c.o.Logger.Info("keeper started", "pid", cmd.Process.Pid)
	// The keeper outlives the daemon; while both live, the daemon is its parent and reaps it.
	go func() { _ = cmd.Wait() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = ready.SetReadDeadline(deadline)
	}
	said := make([]byte, 2)
	if n, err := ready.Read(said); n == 0 || string(said[:n]) != "ok" {
		return nil, fmt.Errorf("%s did not come up (%v): see %s", filepath.Base(c.o.Binary), err, log.Name())
	}
	return c.dial(ctx)
}

// read delivers answers and exits until the connection ends, then finds or
// starts another keeper.
func (c *Client) read(w *Wire) {
	defer c.readers.Done()
	for {
		f, files, err := w.Receive()
		if err != nil {
			c.lost(w, err)
			return
		}
		if f.Op == opExit {
			var e Exit
			if err := json.Unmarshal(f.Body, &e); err != nil {
				c.o.Logger.Error("exit not understood", "error", err)
				continue
			}
			c.exits <- e
			continue
		}
		c.mu.Lock()
		ch := c.pending[f.Seq]
		delete(c.pending, f.Seq)
		c.mu.Unlock()
		if ch == nil {
			closeAll(files)
			continue
		}
		ch <- answer{frame: f, files: files}
	}
}

func (c *Client) lost(w *Wire, cause error) {
	c.mu.Lock()
	if c.wire == w {
		c.wire = nil
	}
	waiting := c.pending
	c.pending = map[uint64]chan answer{}
	closed := c.closed
	c.mu.Unlock()
	_ = w.Close()
	for _, ch := range waiting {
		ch <- answer{err: fault.Unavailablef("the keeper went away: %w", cause)}
	}
	if closed {
		return
	}
	c.o.Logger.Warn("keeper lost", "error", cause)
	if err := c.ensure(context.Background(), false); err != nil {
		c.o.Logger.Error("keeper not replaced", "error", err)
	}
}

// call sends one request and decodes its answer into out. Files that come
// along go to pipes; without it they are closed.
func (c *Client) call(ctx context.Context, op string, in, out any, pipes *Pipes, files ...*os.File) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ch := make(chan answer, 1)
	c.mu.Lock()
	w := c.wire
	if w == nil && !c.closed {
		c.mu.Unlock()
		// The reader is replacing a keeper that died, or failed to.
		if err := c.reconnect(ctx); err != nil {
			return err
		}
		c.mu.Lock()
		w = c.wire
	}
	if w == nil {
		c.mu.Unlock()
		return fault.Unavailablef("the keeper does not answer")
	}
	c.seq++
	seq := c.seq
	c.pending[seq] = ch
	c.mu.Unlock()
	if err := w.Send(Frame{Seq: seq, Op: op, Body: body}, files...); err != nil {
		c.forget(seq)
		return fault.Unavailablef("ask the keeper: %w", err)
	}
	select {
	case a := <-ch:
		return a.take(out, pipes)
	case <-ctx.Done():
		c.forget(seq)
		return ctx.Err()
	}
}

func (c *Client) forget(seq uint64) {
	c.mu.Lock()
	delete(c.pending, seq)
	c.mu.Unlock()
}

// reconnect waits for the reader's replacement, trying itself where that failed.
func (c *Client) reconnect(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(startLimit)
	for {
		c.mu.Lock()
		up, closed := c.wire != nil, c.closed
		c.mu.Unlock()
		switch {
		case up:
			return nil
		case closed:
			return fault.Unavailablef("the keeper's client is closed")
		}
		select {
		case <-tick.C:
		case <-limit:
			return fault.Unavailablef("the keeper does not answer")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a answer) take(out any, pipes *Pipes) error {
	if a.err != nil {
		return a.err
	}
	if f := a.frame.Failure; f != nil {
		closeAll(a.files)
		return &fault.Error{Class: class(f.Class), Msg: f.Text}
	}
	if out != nil {
		if err := json.Unmarshal(a.frame.Body, out); err != nil {
			closeAll(a.files)
			return err
		}
	}
	if pipes == nil {
		closeAll(a.files)
		return nil
	}
	var set struct {
		Streams StreamSet `json:"streams"`
	}
	if err := json.Unmarshal(a.frame.Body, &set); err != nil {
		closeAll(a.files)
		return err
	}
	p, err := Sort(set.Streams, a.files)
	*pipes = p
	return err
}

var classes = map[string]error{
	"invalid": fault.ErrInvalid, "not-found": fault.ErrNotFound, "exists": fault.ErrExists, "conflict": fault.ErrConflict,
	"permission": fault.ErrPermission, "unsupported": fault.ErrUnsupported, "unavailable": fault.ErrUnavailable,
}

func class(word string) error {
	if c := classes[word]; c != nil {
		return c
	}
	return fault.ErrInternal
}

// Fail words an error for the wire.
func Fail(err error) *Failure {
	f := &Failure{Class: "internal", Text: err.Error()}
	for word, c := range classes {
		if errors.Is(err, c) {
			f.Class = word
		}
	}
	if errdefs.IsNotFound(err) {
		f.Class = "not-found"
	}
	return f
}
