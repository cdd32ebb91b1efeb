package keeper

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Version asks who answers.
func (c *Client) Version(ctx context.Context) (v VersionInfo, err error) {
	err = c.call(ctx, opVersion, nil, &v, nil)
	return v, err
}

// Create makes a container with its first process, stopped before its program.
func (c *Client) Create(ctx context.Context, r CreateRequest) (s Started, p Pipes, err error) {
	err = c.call(ctx, opCreate, r, &s, &p)
	return s, p, err
}

// Start lets the first process run its program.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, opStart, Ref{ID: id}, nil, nil)
}

// Exec starts a further process in a running container.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (s Started, p Pipes, err error) {
	err = c.call(ctx, opExec, r, &s, &p)
	return s, p, err
}

// Kill sends a signal to one process, or with all to every one of the container.
func (c *Client) Kill(ctx context.Context, r Ref, signal int, all bool) error {
	return c.call(ctx, opKill, KillRequest{Ref: r, Signal: signal, All: all}, nil, nil)
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, r Ref, height, width uint16) error {
	return c.call(ctx, opResize, ResizeRequest{Ref: r, Height: height, Width: width}, nil, nil)
}

// CloseStdin ends a process's input; the daemon closes its own end too.
func (c *Client) CloseStdin(ctx context.Context, r Ref) error {
	return c.call(ctx, opCloseStdin, r, nil, nil)
}

// Pause freezes all processes of a container.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, opPause, Ref{ID: id}, nil, nil)
}

// Resume thaws them.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, opResume, Ref{ID: id}, nil, nil)
}

// Update replaces limits of a container.
func (c *Client) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	return c.call(ctx, opUpdate, UpdateRequest{Ref: Ref{ID: id}, Resources: r}, nil, nil)
}

// Pids lists the processes of a container as the host numbers them.
func (c *Client) Pids(ctx context.Context, id string) (pids []int, err error) {
	err = c.call(ctx, opPids, Ref{ID: id}, &pids, nil)
	return pids, err
}

// Delete forgets an exited process; of a container it kills what may be left.
func (c *Client) Delete(ctx context.Context, r Ref) error {
	return c.call(ctx, opDelete, r, nil, nil)
}

// List tells of all processes that were not deleted.
func (c *Client) List(ctx context.Context) (all []Process, err error) {
	err = c.call(ctx, opList, nil, &all, nil)
	return all, err
}

// Pipes gives the streams of a process again.
func (c *Client) Pipes(ctx context.Context, r Ref) (p Pipes, err error) {
	err = c.call(ctx, opPipes, r, nil, &p)
	return p, err
}

// Ack says that an exit is safe: the keeper forgets its journal entry.
func (c *Client) Ack(ctx context.Context, r Ref) error {
	return c.call(ctx, opAck, r, nil, nil)
}

// Shutdown ends the keeper if it holds no container.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true // its end is wanted: no replacement
	w := c.wire
	c.mu.Unlock()
	if w == nil {
		return nil
	}
	return c.call(ctx, opShutdown, nil, nil, nil)
}
