package container

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/lib/fault"
)

// execDrain is how long an exec's output may go on after its process has
// ended: its descendants may hold the pipes for ever.
const execDrain = time.Second

// How long an exec is remembered that nobody asks for: after its end, and
// before a start that does not come.
const (
	execMemory = 5 * time.Minute
	execUnused = time.Hour
)

// execution is one exec.
type execution struct {
	s *Service
	e *entry

	mu      sync.Mutex
	x       Exec
	started bool
	pipes   Pipes
	ended   chan struct{}
	memory  *time.Timer // forgets it; nil while it runs
}

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

// ExecCreate registers a further process of a running container.
func (s *Service) ExecCreate(_ context.Context, id string, spec ExecSpec) (string, error) {
	e, err := s.find(id)
	if err != nil {
		return "", err
	}
	c := *e.snap.Load()
	switch {
	case c.State.Status == Paused:
		return "", fault.Conflictf("container %s is paused, unpause the container before exec", id)
	case c.State.Status == Restarting:
		return "", fault.Conflictf("container %s is restarting, wait until the container is running", id)
	case !c.alive():
		return "", notRunning(c)
	case len(spec.Cmd) == 0:
		return "", fault.Invalidf("no exec command specified")
	}
	if _, err := parseKeys(spec.DetachKeys); err != nil {
		return "", err
	}
	x := &execution{s: s, e: e, x: Exec{ID: newID(), ContainerID: c.ID, Spec: spec}, ended: make(chan struct{})}
	x.remember(execUnused)
	s.mu.Lock()
	s.execs[x.x.ID] = x
	s.mu.Unlock()
	e.mu.Lock()
	e.execs[x.x.ID] = x
	e.mu.Unlock()
	s.publish(c, "exec_create: "+strings.Join(spec.Cmd, " "), "execID", x.x.ID)
	return x.x.ID, nil
}

func (s *Service) execution(id string) (*execution, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	x := s.execs[id]
	if x == nil {
		return nil, &fault.Error{Class: fault.ErrNotFound, Noun: "exec", ID: id, Msg: "No such exec instance: " + id}
	}
	return x, nil
}

// ExecStart starts it. With detach the attachment is nil.
func (s *Service) ExecStart(ctx context.Context, id string, detach bool, size *[2]uint) (Attachment, error) {
	x, err := s.execution(id)
	if err != nil {
		return nil, err
	}
	c := *x.e.snap.Load()
	if c.State.Status == Paused {
		return nil, fault.Conflictf("container %s is paused, unpause the container before exec", c.ID)
	}
	if !c.alive() {
		return nil, notRunning(c)
	}
	x.mu.Lock()
	if x.started {
		running := x.x.Running
		x.mu.Unlock()
		if running {
			return nil, fault.Conflictf("Error: Exec command %s is already running", id)
		}
		return nil, fault.Conflictf("Error: Exec command %s has already run", id)
	}
	x.started = true
	x.memory.Stop()
	x.memory = nil
	spec := x.x.Spec
	x.mu.Unlock()
	if size != nil {
		spec.ConsoleSize = *size
	}
	if detach {
		spec.Stdin = false
	}
	s.publish(c, "exec_start: "+strings.Join(spec.Cmd, " "), "execID", id)
	pid, pipes, err := s.o.Runtime.Exec(context.WithoutCancel(ctx), c.ID, id, c, spec)
	if err != nil {
		code := 126
		if errors.Is(err, fault.ErrNotFound) {
			code = 127
		}
		x.mu.Lock()
		x.x.ExitCode = &code
		x.remember(execMemory)
		x.mu.Unlock()
		return nil, err
	}
	x.mu.Lock()
	x.x.Pid = pid
	x.x.Running = x.x.ExitCode == nil // it may have ended already
	x.pipes = pipes
	x.mu.Unlock()
	if !detach {
		return x, nil
	}
	s.background(func(context.Context) { _ = x.Serve(nil, io.Discard, io.Discard) })
	return nil, nil
}

// TTY tells whether the exec has a terminal.
func (x *execution) TTY() bool { return x.x.Spec.TTY }

// Close gives up the streams; the process goes on.
func (x *execution) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range []*os.File{x.pipes.Stdin, x.pipes.Stdout, x.pipes.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Serve copies the streams until the process ends or the client leaves.
func (x *execution) Serve(stdin io.Reader, stdout, stderr io.Writer) error {
	defer x.Close()
	spec := x.x.Spec
	if !spec.Stdout {
		stdout = io.Discard
	}
	if !spec.Stderr {
		stderr = io.Discard
	}
	var copies sync.WaitGroup
	for _, c := range []struct {
		from *os.File
		to   io.Writer
	}{{x.pipes.Stdout, stdout}, {x.pipes.Stderr, stderr}} {
		if c.from == nil {
			continue
		}
		copies.Add(1)
		go func() {
			defer copies.Done()
			if _, err := io.Copy(c.to, c.from); err != nil {
				// The client has gone: what the process still writes is nobody's.
				_, _ = io.Copy(io.Discard, c.from)
			}
		}()
	}
	drained := make(chan struct{})
	go func() { copies.Wait(); close(drained) }()
	left := make(chan error, 1)
	if stdin != nil && x.pipes.Stdin != nil && spec.Stdin {
		go func() { left <- x.feed(stdin) }()
	}
	var late <-chan time.Time
	ended := x.ended
	for {
		select {
		case <-drained:
			<-x.ended // the exit code is known when the client hears the end
			return nil
		case <-ended:
			ended = nil
			timer := time.NewTimer(execDrain)
			defer timer.Stop()
			late = timer.C
		case <-late:
			return nil
		case err := <-left:
			if errors.Is(err, ErrDetached) {
				return err
			}
			left = nil
		case <-x.s.ctx.Done():
			return fault.Unavailablef("the daemon is stopping")
		}
	}
}

func (x *execution) feed(stdin io.Reader) error {
	if x.x.Spec.TTY {
		keys, _ := parseKeys(x.x.Spec.DetachKeys) // checked at creation
		stdin = &detacher{r: stdin, keys: keys}
	}
	_, err := io.Copy(x.pipes.Stdin, stdin)
	if errors.Is(err, ErrDetached) || x.x.Spec.TTY {
		return err
	}
	_ = x.pipes.Stdin.Close()
	return ignoreMissing(x.s.o.Runtime.CloseStdin(context.WithoutCancel(x.s.ctx), x.x.ContainerID, x.x.ID))
}

func (s *Service) execExited(e Exit) {
	x, err := s.execution(e.ExecID)
	if err == nil {
		x.end(e.Code)
		s.publish(*x.e.snap.Load(), "exec_die", "execID", e.ExecID, "exitCode", strconv.Itoa(e.Code))
	}
	s.tolerate(ignoreMissing(s.o.Runtime.Delete(context.WithoutCancel(s.ctx), e.ContainerID, e.ExecID)), "exec not removed", e.ContainerID)
}

func (x *execution) end(code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.x.ExitCode != nil || !x.started {
		return
	}
	x.x.ExitCode, x.x.Running, x.x.CanRemove = &code, false, true
	close(x.ended)
	x.remember(execMemory)
}

// remember keeps an exec that does not run for so long from now on. mu is held.
func (x *execution) remember(long time.Duration) {
	if x.memory != nil {
		x.memory.Reset(long)
		return
	}
	x.memory = time.AfterFunc(long, func() {
		x.mu.Lock()
		running := x.started && x.x.ExitCode == nil
		x.started = true // too late for a start
		x.mu.Unlock()
		if running {
			return // it was started at the last moment
		}
		x.s.dropExec(x.e, x.x.ID)
	})
}

// dropped ends the memory of an exec that nobody finds any more: its timer
// would hold it. mu is held.
func (x *execution) dropped() {
	if x.memory != nil {
		x.memory.Stop()
	}
}

// ExecGet tells of an exec.
func (s *Service) ExecGet(_ context.Context, id string) (Exec, error) {
	x, err := s.execution(id)
	if err != nil {
		return Exec{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.x.ExitCode != nil {
		x.remember(execMemory)
	}
	return x.x, nil
}

// ExecIDs lists the execs of a container that have not ended.
func (s *Service) ExecIDs(id ID) []string {
	s.mu.RLock()
	e := s.byID[id]
	s.mu.RUnlock()
	if e == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []string
	for xid, x := range e.execs {
		x.mu.Lock()
		if x.x.ExitCode == nil {
			ids = append(ids, xid)
		}
		x.mu.Unlock()
	}
	return ids
}

// ExecResize sets the size of an exec's terminal.
func (s *Service) ExecResize(ctx context.Context, id string, height, width uint16) error {
	x, err := s.execution(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	container, running := x.x.ContainerID, x.x.Running
	x.mu.Unlock()
	if !running {
		return fault.Conflictf("Error: Exec command %s is not running", id)
	}
	return s.o.Runtime.Resize(ctx, container, id, height, width)
}
