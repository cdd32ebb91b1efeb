package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	api "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// process is one of a task's.
//
//	created ──Start──▶ running ──exit──▶ stopped ──Delete──▶ (forgotten)
//	   └──────────────────exit────────────▲
type process struct {
	r      *Runtime
	t      *task
	execID string // "" for the first process
	io     runtime.IO
	spec   *specs.Process // of an exec

	mu      sync.Mutex // Start and exit come one after the other
	pid     int
	started bool
	exit    *runtime.Exit
	done    chan struct{} // closed when exit is set
	pump    *pump         // of a terminal
}

func newProcess(r *Runtime, t *task, execID string, io runtime.IO) *process {
	return &process{r: r, t: t, execID: execID, io: io, done: make(chan struct{})}
}

func (p *process) ref() keeper.Ref { return keeper.Ref{ID: p.t.key, Exec: p.execID} }

// ID is the exec's, or the task's for its first process.
func (p *process) ID() string {
	if p.execID == "" {
		return p.t.id
	}
	return p.execID
}

// State tells how far a process is.
func (p *process) State(context.Context) (runtime.State, error) {
	p.t.all.Lock()
	paused := p.t.paused
	p.t.all.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := runtime.State{Pid: uint32(p.pid), Stdin: p.io.Stdin, Stdout: p.io.Stdout, Stderr: p.io.Stderr, Terminal: p.io.Terminal}
	switch {
	case p.exit != nil:
		s.Status, s.ExitStatus, s.ExitedAt = runtime.StoppedStatus, p.exit.Status, p.exit.Timestamp
	case paused:
		s.Status = runtime.PausedStatus
	case p.started:
		s.Status = runtime.RunningStatus
	default:
		s.Status = runtime.CreatedStatus
	}
	return s, nil
}

// Start lets the first process run its program, or makes an exec.
func (p *process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.exit != nil {
		return fmt.Errorf("process %s was started before: %w", p.ID(), errdefs.ErrFailedPrecondition)
	}
	if p.execID == "" {
		if err := p.r.keeper.Start(ctx, p.t.key); err != nil {
			return err
		}
		p.started = true
		p.r.publish(p.t.namespace, runtime.TaskStartEventTopic, &api.TaskStart{ContainerID: p.t.id, Pid: uint32(p.pid)})
		return nil
	}
	wanted, fifos, err := streams(p.io)
	if err != nil {
		return err
	}
	started, pipes, err := p.r.keeper.Exec(ctx, keeper.ExecRequest{Ref: p.ref(), Process: p.spec, Streams: wanted, Fifos: fifos})
	if err != nil {
		return err
	}
	p.pid, p.started = started.Pid, true
	if err := p.attach(pipes); err != nil {
		return errors.Join(err, p.r.keeper.Kill(context.WithoutCancel(ctx), p.ref(), int(syscall.SIGKILL), false))
	}
	p.r.publish(p.t.namespace, runtime.TaskExecStartedEventTopic, &api.TaskExecStarted{ContainerID: p.t.id, ExecID: p.execID, Pid: uint32(p.pid)})
	return nil
}

// found takes over what an earlier daemon had. Nothing else uses p yet.
func (p *process) found(ctx context.Context, k keeper.Process) {
	p.pid, p.started = k.Pid, k.Status != "created"
	if k.Exit != nil {
		p.setExit(*k.Exit)
		return
	}
	pipes, err := p.r.keeper.Pipes(ctx, p.ref())
	if err == nil {
		err = p.attach(pipes)
	}
	if err != nil {
		p.r.log.Warn("streams not found again", "task", p.t.key, "exec", p.execID, "error", err)
	}
}

// setExit is called with p.mu held. It tells whether the exit is news.
func (p *process) setExit(e keeper.Exit) bool {
	if p.exit != nil {
		return false
	}
	p.exit = &runtime.Exit{Pid: uint32(e.Pid), Status: uint32(e.Code), Timestamp: e.Time}
	close(p.done)
	return true
}

// exited takes the end of one of the task's processes.
func (t *task) exited(e keeper.Exit) {
	p := t.process
	if e.Exec != "" {
		t.all.Lock()
		p = t.procs[e.Exec]
		t.all.Unlock()
	}
	if p == nil {
		return
	}
	// Behind a Start that is under way: its event goes first.
	p.mu.Lock()
	p.setExit(e)
	pump := p.pump
	p.mu.Unlock()
	pump.closeInput()
	if e.OOM {
		t.r.publish(t.namespace, runtime.TaskOOMEventTopic, &api.TaskOOM{ContainerID: t.id})
	}
	t.r.publish(t.namespace, runtime.TaskExitEventTopic, &api.TaskExit{
		ContainerID: t.id, ID: p.ID(), Pid: uint32(e.Pid), ExitStatus: uint32(e.Code), ExitedAt: protobuf.ToTimestamp(e.Time),
	})
}

// Wait for the exit.
func (p *process) Wait(ctx context.Context) (*runtime.Exit, error) {
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.exit, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Kill sends a signal, with all to every process of the task.
func (p *process) Kill(ctx context.Context, signal uint32, all bool) error {
	p.mu.Lock()
	unborn := p.pid == 0
	p.mu.Unlock()
	if unborn {
		return fmt.Errorf("process %s is not started: %w", p.ID(), errdefs.ErrFailedPrecondition)
	}
	return p.r.keeper.Kill(ctx, p.ref(), int(signal), all)
}

// ResizePty sets the size of the terminal.
func (p *process) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	const most = 1<<16 - 1
	if size.Height > most || size.Width > most {
		return fault.Invalidf("a terminal of %d by %d characters", size.Width, size.Height)
	}
	return p.r.keeper.Resize(ctx, p.ref(), uint16(size.Height), uint16(size.Width))
}

// CloseIO ends the input.
func (p *process) CloseIO(ctx context.Context) error {
	if p.io.Terminal {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pump.closeInput()
		return nil
	}
	return p.r.keeper.CloseStdin(ctx, p.ref())
}

// Delete forgets an exec that has ended or was never started.
func (p *process) Delete(ctx context.Context) (*runtime.Exit, error) {
	exit, err := p.end(ctx)
	if err != nil {
		return nil, err
	}
	p.pump.close()
	p.t.forget(p.execID)
	if err := p.t.save(); err != nil {
		return nil, err
	}
	p.r.publish(p.t.namespace, runtime.TaskDeleteEventTopic, &api.TaskDelete{
		ContainerID: p.t.id, ID: p.execID, Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: protobuf.ToTimestamp(exit.Timestamp),
	})
	return exit, nil
}

// end deletes a process at the keeper and gives its exit.
func (p *process) end(ctx context.Context) (*runtime.Exit, error) {
	p.mu.Lock()
	running, unborn := p.started && p.exit == nil, p.pid == 0
	p.mu.Unlock()
	switch {
	case running:
		return nil, fmt.Errorf("process %s must be stopped before it is deleted: running: %w", p.ID(), errdefs.ErrFailedPrecondition)
	case unborn:
		return &runtime.Exit{}, nil
	}
	if err := p.r.keeper.Delete(ctx, p.ref()); err != nil && !errors.Is(err, fault.ErrNotFound) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, exitLimit)
	defer cancel()
	return p.Wait(ctx)
}
