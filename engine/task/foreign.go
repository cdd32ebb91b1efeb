package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Foreign is a runtime beside the keeper, which containerd's shims drive.
type Foreign struct {
	Type string // the shim, "io.containerd.runsc.v1" or a path; "" is runc's, which drives any OCI runtime
	Path string // the OCI runtime for runc's shim
}

// Names of runtimes.
const (
	native   = "berth"                 // the keeper
	runcShim = "io.containerd.runc.v2" // containerd's shim for OCI runtimes
	mark     = "berth.runtime"         // label of our containers in containerd
)

// shimName is the form of a name that means a shim of that kind, by containerd's rule.
var shimName = regexp.MustCompile(`^[a-z0-9]+(\.[a-z0-9-]+)+\.v[0-9]+$`)

// foreign runs containers whose processes belong to shims.
type foreign struct {
	client   *client.Client
	runtimes map[string]Foreign
	shim     string // runc's, as a name or a path
	systemd  bool
	dir, ns  string
	log      *slog.Logger
	exits    chan container.Exit

	mu    sync.Mutex
	tasks map[container.ID]*shimmed
	ended map[container.ID]container.Exit // while no daemon lived
}

// shimmed is one container.
type shimmed struct {
	container client.Container
	task      client.Task
	cgroups   map[string]string
	execs     map[string]client.Process
}

// Knows tells whether containers may ask for a runtime by this name.
func (r *Runtime) Knows(name string) bool {
	_, _, err := r.foreign.runtime(name)
	return err == nil
}

// runtime resolves a name. What containerd or docker call runc is the keeper,
// which is the same code, unless the configuration names a program for it.
func (f *foreign) runtime(name string) (_ Foreign, own bool, err error) {
	if f != nil {
		if r, ok := f.runtimes[name]; ok {
			return r, false, nil
		}
	}
	switch {
	case name == "", name == native, name == "runc", name == runcShim:
		return Foreign{}, true, nil
	case f != nil && shimName.MatchString(name):
		return Foreign{Type: name}, false, nil
	}
	return Foreign{}, false, fault.Invalidf("unknown or invalid runtime name: %s", name)
}

// find gives a container of a shim, or nil where it is the keeper's.
func (f *foreign) find(id container.ID) *shimmed {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tasks[id]
}

func (f *foreign) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, f.ns)
}

// restore finds the containers whose shims have outlived the last daemon.
func (f *foreign) restore(ctx context.Context) error {
	ctx = f.in(ctx)
	all, err := f.client.Containers(ctx, `labels."`+mark+`"`)
	if err != nil {
		return err
	}
	for _, c := range all {
		task, err := c.Task(ctx, nil)
		if errdefs.IsNotFound(err) {
			err = c.Delete(ctx) // its start never was, or it has ended and its shim is gone
			if err == nil {
				continue
			}
		}
		if err != nil {
			f.log.Warn("container of another runtime not found again", "container", c.ID(), "error", err)
			continue
		}
		s := &shimmed{container: c, task: task, cgroups: cgroupsOf(int(task.Pid())), execs: map[string]client.Process{}}
		f.tasks[container.ID(c.ID())] = s
		if err := f.attend(container.Exit{ContainerID: container.ID(c.ID()), Pid: int(task.Pid())}, s, task); err != nil {
			f.log.Warn("container of another runtime not watched", "container", c.ID(), "error", err)
		}
	}
	return f.sweep()
}

// sweep removes the named pipes of containers that are gone.
func (f *foreign) sweep() error {
	left, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if f.tasks[container.ID(e.Name())] == nil {
			if err := os.RemoveAll(filepath.Join(f.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *foreign) create(ctx context.Context, r Foreign, c container.Container, s *specs.Spec, want Streams) (started Started, err error) {
	ctx = f.in(ctx)
	if old, err := f.client.LoadContainer(ctx, string(c.ID)); err == nil {
		_ = old.Delete(ctx) // of a start that was cut short
	}
	io, pipes, err := makePipes(f.pipes(c.ID, ""), want)
	if err != nil {
		return started, err
	}
	defer func() {
		if err != nil {
			closePipes(pipes)
			err = errors.Join(err, io.remove())
		}
		io.release()
	}()
	var o any
	kind := r.Type
	if kind == "" {
		kind = f.shim
		o = &options.Options{BinaryName: r.Path, SystemdCgroup: f.systemd}
	}
	made, err := f.client.NewContainer(ctx, string(c.ID), client.WithRuntime(kind, o), client.WithSpec(s),
		client.WithContainerLabels(map[string]string{mark: c.Spec.Runtime}))
	if err != nil {
		return started, err
	}
	task, err := made.NewTask(ctx, io.creator())
	if err != nil {
		return started, errors.Join(err, made.Delete(context.WithoutCancel(ctx)))
	}
	one := &shimmed{container: made, task: task, cgroups: cgroupsOf(int(task.Pid())), execs: map[string]client.Process{}}
	if err := f.attend(container.Exit{ContainerID: c.ID, Pid: int(task.Pid())}, one, task); err != nil {
		_, gone := task.Delete(ctx, client.WithProcessKill)
		return started, errors.Join(err, gone, made.Delete(ctx))
	}
	f.mu.Lock()
	f.tasks[c.ID] = one
	f.mu.Unlock()
	return Started{Pid: int(task.Pid()), Pipes: pipes, Cgroups: one.cgroups}, nil
}

// attend waits for a process's end and says so, for as long as the daemon lives.
func (f *foreign) attend(e container.Exit, s *shimmed, p client.Process) error {
	wait, err := p.Wait(f.in(context.Background()))
	if err != nil {
		return err
	}
	go func() {
		status := <-wait
		e.Code, e.Time = int(status.ExitCode()), status.ExitTime()
		if status.Error() != nil {
			e.Code, e.Unknown = 137, true
		}
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		if e.ExecID == "" {
			e.OOMKilled = oomKilled(s.cgroups)
		}
		f.exits <- e
	}()
	return nil
}

func (f *foreign) exec(ctx context.Context, s *shimmed, id container.ID, execID string, p *specs.Process, want Streams) (started Started, err error) {
	ctx = f.in(ctx)
	io, pipes, err := makePipes(f.pipes(id, execID), want)
	if err != nil {
		return started, err
	}
	defer func() {
		if err != nil {
			closePipes(pipes)
			err = errors.Join(err, io.remove())
		}
		io.release()
	}()
	process, err := s.task.Exec(ctx, execID, p, io.creator())
	if err != nil {
		return started, err
	}
	if err := f.attend(container.Exit{ContainerID: id, ExecID: execID}, s, process); err != nil {
		return started, err
	}
	if err := process.Start(ctx); err != nil {
		_, gone := process.Delete(ctx)
		return started, errors.Join(err, gone)
	}
	f.mu.Lock()
	s.execs[execID] = process
	f.mu.Unlock()
	return Started{Pid: int(process.Pid()), Pipes: pipes}, nil
}

func (f *foreign) pipes(id container.ID, execID string) string {
	return filepath.Join(f.dir, string(id), "exec-"+execID)
}

// process finds one of a container's.
func (f *foreign) process(s *shimmed, execID string) (client.Process, error) {
	if execID == "" {
		return s.task, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := s.execs[execID]; p != nil {
		return p, nil
	}
	return nil, fault.NotFound("exec", execID)
}

func (f *foreign) kill(ctx context.Context, s *shimmed, execID string, sig syscall.Signal) error {
	p, err := f.process(s, execID)
	if err != nil {
		return err
	}
	return p.Kill(f.in(ctx), sig)
}

func (f *foreign) pids(ctx context.Context, s *shimmed) (list []int, err error) {
	all, err := s.task.Pids(f.in(ctx))
	for _, p := range all {
		list = append(list, int(p.Pid))
	}
	return list, err
}

func (f *foreign) delete(ctx context.Context, s *shimmed, id container.ID, execID string) error {
	ctx = f.in(ctx)
	p, err := f.process(s, execID)
	if err != nil {
		return err
	}
	if execID != "" {
		if _, err := p.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		f.mu.Lock()
		delete(s.execs, execID)
		f.mu.Unlock()
		return os.RemoveAll(f.pipes(id, execID))
	}
	if _, err := s.task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := s.container.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	f.mu.Lock()
	delete(f.tasks, id)
	f.mu.Unlock()
	return os.RemoveAll(filepath.Join(f.dir, string(id)))
}

// forget drops what is known of a container that ended without a daemon.
func (f *foreign) forget(id container.ID) bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, known := f.ended[id]
	delete(f.ended, id)
	return known
}

// list tells of all first processes.
func (f *foreign) list(ctx context.Context) (tasks []container.Task) {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	all := make(map[container.ID]*shimmed, len(f.tasks))
	for id, s := range f.tasks {
		all[id] = s
	}
	f.mu.Unlock()
	f.mu.Lock()
	for id, e := range f.ended {
		if all[id] == nil {
			tasks = append(tasks, container.Task{ID: id, Pid: e.Pid, Status: container.Exited, Exit: e})
		}
	}
	f.mu.Unlock()
	for id, s := range all {
		t := container.Task{ID: id, Pid: int(s.task.Pid()), Status: container.Running}
		status, err := s.task.Status(f.in(ctx))
		switch {
		case err != nil:
			t.Status = container.Exited
			t.Exit = container.Exit{ContainerID: id, Pid: t.Pid, Code: 137, Time: time.Now(), Unknown: true}
		case status.Status == client.Stopped:
			t.Status = container.Exited
			t.Exit = container.Exit{ContainerID: id, Pid: t.Pid, Code: int(status.ExitStatus), Time: status.ExitTime, OOMKilled: oomKilled(s.cgroups)}
		case status.Status == client.Created:
			t.Status = container.Created
		case status.Status == client.Paused:
			t.Status = container.Paused
		}
		tasks = append(tasks, t)
	}
	return tasks
}

// closeInput lets a process see the end of its input.
func (f *foreign) closeInput(ctx context.Context, s *shimmed, execID string) error {
	p, err := f.process(s, execID)
	if err != nil {
		return err
	}
	return p.CloseIO(f.in(ctx), client.WithStdinCloser)
}

// newForeign finds what runs already. Without a client there are no others than the keeper.
func newForeign(ctx context.Context, o Options) (*foreign, error) {
	if o.Shims == nil {
		return nil, nil
	}
	f := &foreign{
		client: o.Shims, runtimes: o.Runtimes, shim: o.ShimPath, systemd: o.Systemd, dir: filepath.Join(o.Dir, "io"), ns: o.Namespace, log: o.Logger,
		exits: make(chan container.Exit), tasks: map[container.ID]*shimmed{}, ended: o.Ended,
	}
	if f.shim == "" {
		f.shim = runcShim
	}
	if f.ns == "" {
		f.ns = "moby"
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	if err := f.restore(ctx); err != nil {
		return nil, fmt.Errorf("find containers of other runtimes: %w", err)
	}
	return f, nil
}
