package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// Limits of a Client.
const (
	startLimit = 10 * time.Second // until a keeper answers
	retryPause = 50 * time.Millisecond
	retryLimit = 5 * time.Second // the longest pause between tries to replace a keeper
	logLimit   = 1 << 20         // bytes of keeper.log before it is begun anew
)

// Options of a Client.
type Options struct {
	Dir    string // the keeper's own folder, in the engine's run folder
	Binary string // path of berth-keeper
	Cgroup string // where the keeper lives, away from the daemon's; "" leaves it with the daemon
	// Realm keeps apart the processes of several clients of one keeper: each
	// sees only its own, under the ids it gave.
	Realm  string
	Logger *slog.Logger
}

// Client speaks to the keeper of one engine. All its methods are safe for
// concurrent use. When the keeper dies another is started, which adopts what
// runs and gets back the pipes, of which the client holds duplicates.
type Client struct {
	o      Options
	prefix string // of the realm's ids on the wire
	exits  *queue

	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu      sync.Mutex
	wire    *Wire         // nil while a keeper is being found
	changed chan struct{} // closed when wire or closed change
	seq     uint64
	pending map[uint64]chan answer
	closed  bool
	held    map[Ref]duplicates
}

type answer struct {
	frame Frame
	files []*os.File
	err   error
}

// Connect finds the keeper or starts one.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	c := &Client{o: o, exits: newQueue(), pending: map[uint64]chan answer{}, held: map[Ref]duplicates{}, changed: make(chan struct{})}
	if o.Realm != "" {
		c.prefix = o.Realm + "+"
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	w, err := c.establish(ctx)
	for end := time.Now().Add(startLimit); wentAway(err) && time.Now().Before(end); w, err = c.establish(ctx) {
		// It was killed while it answered: another is started.
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	c.tasks.Add(2)
	go func() { defer c.tasks.Done(); c.exits.run(c.ctx) }()
	go func() { defer c.tasks.Done(); c.supervise(w) }()
	return c, nil
}

// Exits delivers the end of each process, first those that were not
// acknowledged before. An exit may come again after a reconnection until Ack.
// It is closed by Close.
func (c *Client) Exits() <-chan Exit { return c.exits.out }

// Close leaves the keeper running.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	w := c.wire
	for r := range c.held {
		c.release(r)
	}
	c.mu.Unlock()
	c.stop()
	var err error
	if w != nil {
		err = w.Close()
	}
	c.tasks.Wait()
	return err
}

// supervise reads from the keeper, and when it is lost finds or starts
// another, until Close.
//
//	connected ──lost──▶ searching ──found──▶ connected
//	                        └────Close────▶ ended
func (c *Client) supervise(w *Wire) {
	pause := retryPause
	for {
		if w != nil {
			cause := c.read(w)
			c.lost(w, cause)
			if c.done() {
				return
			}
			c.o.Logger.Warn("keeper lost", "error", cause)
			pause = retryPause
		}
		var err error
		if w, err = c.establish(c.ctx); err == nil {
			continue
		}
		if c.done() {
			return
		}
		c.o.Logger.Error("keeper not replaced", "error", err)
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
			return
		}
		pause = min(2*pause, retryLimit)
	}
}

// wentAway tells whether a conversation ended because the other side did.
func wentAway(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (c *Client) done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// establish connects, starting a keeper where none answers, and makes the
// connection known once it is ready for all calls.
func (c *Client) establish(ctx context.Context) (*Wire, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	conn, err := c.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	w := NewWire(conn)
	unblock := context.AfterFunc(ctx, func() { _ = w.Close() })
	if err := c.greet(w); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if !unblock() {
		return nil, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.Join(fault.Unavailablef("the keeper's client is closed"), w.Close())
	}
	c.wire = w
	c.change()
	return w, nil
}

// change wakes who waits for a connection. c.mu is held.
func (c *Client) change() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// find connects to a keeper that answers or starts one. Another client may be
// starting one at the same moment: only one of both stays.
func (c *Client) find(ctx context.Context) (*net.UnixConn, error) {
	for {
		conn, err := c.dial(ctx)
		if err == nil {
			return conn, nil
		}
		err = c.spawn(ctx)
		if err == nil {
			continue
		}
		if conn, second := c.dial(ctx); second == nil {
			return conn, nil
		}
		if _, missing := os.Stat(c.o.Binary); missing != nil {
			return nil, err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// greet checks who answers, gives back what a dead keeper held, and asks for exits.
func (c *Client) greet(w *Wire) error {
	var v VersionInfo
	if err := c.ask(w, opVersion, nil, &v); err != nil {
		return err
	}
	if v.Protocol != Version {
		return fault.Unavailablef("the running keeper (pid %d) speaks protocol %d and this daemon %d: stop all containers and the keeper, then start again", v.Pid, v.Protocol, Version)
	}
	c.mu.Lock()
	back := make(map[Ref]Pipes, len(c.held))
	for r, d := range c.held {
		back[r] = d.pipes()
	}
	c.mu.Unlock()
	for r, p := range back {
		set, files := p.List()
		err := c.ask(w, opAdopt, AdoptRequest{Ref: r, Streams: set}, nil, files...)
		p.Close()
		switch {
		case errors.Is(err, fault.ErrNotFound), errors.Is(err, fault.ErrConflict): // gone, or the same keeper as before
		case err != nil:
			return fmt.Errorf("give pipes back: %w", err)
		}
	}
	return c.ask(w, opSubscribe, nil, nil)
}

// ask sends a request and waits for its answer on a connection that nobody
// else uses yet.
func (c *Client) ask(w *Wire, op string, in, out any, files ...*os.File) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if err := w.Send(Frame{Seq: 1, Op: op, Body: body}, files...); err != nil {
		return fault.Unavailablef("ask the keeper: %w", err)
	}
	for {
		f, got, err := w.Receive()
		switch {
		case err != nil:
			return fault.Unavailablef("the keeper went away: %w", err)
		case f.Op == opExit:
			c.exit(f)
		default:
			return answer{frame: f, files: got}.take(out, nil)
		}
	}
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(c.o.Dir, "keeper.sock"))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// inherited names what a keeper gets of the daemon's environment, which may
// hold credentials and a service manager's sockets.
var inherited = []string{"PATH", "HOME", "TMPDIR", "GODEBUG", "GOGC", "GOMAXPROCS", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "BERTH_KEEPER_STEPS"}

// spawn starts a keeper in a session of its own. It tells through a pipe that
// it listens.
func (c *Client) spawn(ctx context.Context) error {
	name := filepath.Join(c.o.Dir, "keeper.log")
	if info, err := os.Stat(name); err == nil && info.Size() > logLimit {
		_ = os.Rename(name, name+".1")
	}
	log, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(c.o.Binary, "--dir", c.o.Dir, "--ready-fd", "3", "--cgroup", c.o.Cgroup)
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{child}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, name := range inherited {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	err = cmd.Start()
	_ = child.Close()
	if err != nil {
		return err
	}
	// The keeper outlives the daemon; while both live, the daemon is its parent and reaps it.
	go func() { _ = cmd.Wait() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = ready.SetReadDeadline(deadline)
	}
	said := make([]byte, 2)
	if n, err := ready.Read(said); n == 0 || string(said[:n]) != "ok" {
		return fmt.Errorf("%s did not come up (%v): see %s", filepath.Base(c.o.Binary), err, log.Name())
	}
	c.o.Logger.Info("keeper started", "pid", cmd.Process.Pid)
	return nil
}

// read delivers answers and exits until the connection ends.
func (c *Client) read(w *Wire) error {
	for {
		f, files, err := w.Receive()
		if err != nil {
			return err
		}
		if f.Op == opExit {
			c.exit(f)
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

// exit passes one on, if it is of this realm.
func (c *Client) exit(f Frame) {
	var e Exit
	if err := json.Unmarshal(f.Body, &e); err != nil {
		c.o.Logger.Error("exit not understood", "error", err)
		return
	}
	if c.own(&e.Ref) {
		c.exits.push(e)
	}
}

func (c *Client) lost(w *Wire, cause error) {
	c.mu.Lock()
	c.wire = nil
	c.change()
	waiting := c.pending
	c.pending = map[uint64]chan answer{}
	c.mu.Unlock()
	_ = w.Close()
	for _, ch := range waiting {
		ch <- answer{err: fault.Unavailablef("the keeper went away: %w", cause)}
	}
}

// call sends one request and decodes its answer into out. Files that come
// along go to pipes; without it they are closed. What was asked for by a
// caller that no longer waits is done all the same; undo then takes it back.
func (c *Client) call(ctx context.Context, op string, in, out any, pipes *Pipes, undo func()) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ch := make(chan answer, 1)
	w, seq, err := c.enter(ctx, ch)
	if err != nil {
		return err
	}
	if err := w.Send(Frame{Seq: seq, Op: op, Body: body}); err != nil {
		c.mu.Lock()
		delete(c.pending, seq)
		c.mu.Unlock()
		return fault.Unavailablef("ask the keeper: %w", err)
	}
	select {
	case a := <-ch:
		return a.take(out, pipes)
	case <-ctx.Done():
		if undo != nil {
			c.tasks.Add(1) // this client is not closed: its reader answers ch before it ends
			go func() {
				defer c.tasks.Done()
				if a := <-ch; a.take(nil, nil) == nil {
					undo()
				}
			}()
		}
		return ctx.Err()
	}
}

// enter books a place for an answer once there is a keeper.
func (c *Client) enter(ctx context.Context, ch chan answer) (*Wire, uint64, error) {
	limit := time.After(startLimit)
	for {
		c.mu.Lock()
		w, changed := c.wire, c.changed
		switch {
		case c.closed && w == nil:
			c.mu.Unlock()
			return nil, 0, fault.Unavailablef("the keeper's client is closed")
		case w != nil:
			c.seq++
			seq := c.seq
			c.pending[seq] = ch
			c.mu.Unlock()
			return w, seq, nil
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-limit:
			return nil, 0, fault.Unavailablef("the keeper does not answer")
		case <-ctx.Done():
			return nil, 0, ctx.Err()
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
