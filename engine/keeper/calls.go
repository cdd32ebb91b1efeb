package keeper

import (
	"context"
	"errors"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/lib/fault"
)

// Version asks who answers.
func (c *Client) Version(ctx context.Context) (v VersionInfo, err error) {
	err = c.call(ctx, opVersion, nil, &v, nil, nil)
	return v, err
}

// Create makes a container with its first process, stopped before its program.
func (c *Client) Create(ctx context.Context, r CreateRequest) (s Started, p Pipes, err error) {
	own := Ref{ID: r.ID}
	r.ID = c.prefix + r.ID
	undo := func() { _ = c.Delete(context.Background(), own) }
	if err = c.call(ctx, opCreate, r, &s, &p, undo); err == nil {
		c.hold(own, p)
	}
	return s, p, err
}

// Start lets the first process run its program.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, opStart, c.ref(Ref{ID: id}), nil, nil, nil)
}

// Exec starts a further process in a running container.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (s Started, p Pipes, err error) {
	own := r.Ref
	r.Ref = c.ref(own)
	undo := func() { _ = c.Kill(context.Background(), own, 9, false) }
	if err = c.call(ctx, opExec, r, &s, &p, undo); err == nil {
		c.hold(own, p)
	}
	return s, p, err
}

// Kill sends a signal to one process, or with all to every one of the container.
func (c *Client) Kill(ctx context.Context, r Ref, signal int, all bool) error {
	return c.call(ctx, opKill, KillRequest{Ref: c.ref(r), Signal: signal, All: all}, nil, nil, nil)
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, r Ref, height, width uint16) error {
	return c.call(ctx, opResize, ResizeRequest{Ref: c.ref(r), Height: height, Width: width}, nil, nil, nil)
}

// CloseStdin ends a process's input; the daemon closes its own end too.
func (c *Client) CloseStdin(ctx context.Context, r Ref) error {
	c.dropStdin(r)
	return c.call(ctx, opCloseStdin, c.ref(r), nil, nil, nil)
}

// Pause freezes all processes of a container.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, opPause, c.ref(Ref{ID: id}), nil, nil, nil)
}

// Resume thaws them.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, opResume, c.ref(Ref{ID: id}), nil, nil, nil)
}

// Update replaces limits of a container.
func (c *Client) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	return c.call(ctx, opUpdate, UpdateRequest{Ref: c.ref(Ref{ID: id}), Resources: r}, nil, nil, nil)
}

// Pids lists the processes of a container as the host numbers them.
func (c *Client) Pids(ctx context.Context, id string) (pids []int, err error) {
	err = c.call(ctx, opPids, c.ref(Ref{ID: id}), &pids, nil, nil)
	return pids, err
}

// Delete forgets an exited process; of a container it kills what may be left.
func (c *Client) Delete(ctx context.Context, r Ref) error {
	err := c.call(ctx, opDelete, c.ref(r), nil, nil, nil)
	if err == nil || errors.Is(err, fault.ErrNotFound) {
		c.drop(r)
	}
	return err
}

// List tells of all processes of this realm that were not deleted.
func (c *Client) List(ctx context.Context) (all []Process, err error) {
	err = c.call(ctx, opList, nil, &all, nil, nil)
	all = slices.DeleteFunc(all, func(p Process) bool { return !c.own(&p.Ref) })
	for i := range all {
		c.own(&all[i].Ref)
		if e := all[i].Exit; e != nil {
			c.own(&e.Ref)
		}
	}
	return all, err
}

// Pipes gives the streams of a process again.
func (c *Client) Pipes(ctx context.Context, r Ref) (p Pipes, err error) {
	if err = c.call(ctx, opPipes, c.ref(r), nil, &p, nil); err == nil {
		c.hold(r, p)
	}
	return p, err
}

// Ack says that an exit is safe: the keeper forgets its journal entry.
func (c *Client) Ack(ctx context.Context, r Ref) error {
	return c.call(ctx, opAck, c.ref(r), nil, nil, nil)
}

// Shutdown ends the keeper if it holds no container of any realm; the client
// then waits for no other.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	was := c.closed
	c.closed = true // its end is wanted: no replacement
	c.mu.Unlock()
	err := c.call(ctx, opShutdown, nil, nil, nil, nil)
	if errors.Is(err, fault.ErrConflict) {
		c.mu.Lock()
		c.closed = was
		c.mu.Unlock()
	}
	return err
}

// ref names a process as the wire does.
func (c *Client) ref(r Ref) Ref {
	r.ID = c.prefix + r.ID
	return r
}
