// Package task runs containers' processes: it implements core's Runtime over
// a keeper that is their parent. It writes OCI runtime specifications, reads
// counters from cgroups and words failures as clients expect them. It must
// not know images, networks or logs.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/host"
	"github.com/berth-project/berth/lib/proc"
)

// Keeper is the resident parent of all containers.
type Keeper interface {
	Create(ctx context.Context, id string, s *specs.Spec, streams Streams) (Started, error)
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, id, execID string, p *specs.Process, streams Streams) (Started, error)
	Kill(ctx context.Context, id, execID string, signal int) error
	Resize(ctx context.Context, id, execID string, height, width uint16) error
	CloseStdin(ctx context.Context, id, execID string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r *specs.LinuxResources) error
	Pids(ctx context.Context, id string) ([]int, error)
	Delete(ctx context.Context, id, execID string) error
	Pipes(ctx context.Context, id, execID string) (container.Pipes, error)
	List(ctx context.Context) ([]Process, error)
	Ack(ctx context.Context, id, execID string) error
	Exits() <-chan container.Exit
}

// Streams says what a process wants.
type Streams struct{ TTY, Stdin, Stdout, Stderr bool }

// Started is a process that was made.
type Started struct {
	Pid       int
	StartTime uint64 // clock ticks since boot; 0 where it is not told
	Pipes     container.Pipes
	Cgroups   map[string]string // controller ("" on v2) to path
}

// Process is one that the keeper knows.
type Process struct {
	container.Task
	StartTime uint64
	ExecID    string
	Cgroups   map[string]string
}

// Options of a Runtime.
type Options struct {
	Keeper          Keeper
	Dir             string // of this boot, for mounts while a container is made; "" is /run/berth/task
	CgroupParent    string // "/berth"; a slice with Systemd
	Systemd         bool   // makes the cgroups
	ScopePrefix     string // of the names of systemd's scopes; "" is berth
	InitPath        string // of a small init (tini); "" where none is installed
	SeccompProfile  string // "" is moby's default; "unconfined"; else the profile's text
	NoNewPrivileges bool
	SELinux         bool                            // label processes and files
	Shims           *client.Client                  // containerd, for runtimes beside the keeper; nil refuses those
	ShimPath        string                          // of containerd's shim for OCI runtimes; "" is looked for in the PATH
	Runtimes        map[string]Foreign              // by the name that containers ask for
	Ended           map[container.ID]container.Exit // what the function of this name told before containerd started
	Namespace       string                          // of containerd; "" is moby
	Logger          *slog.Logger
}

// Runtime implements container.Runtime.
type Runtime struct {
	o        Options
	log      *slog.Logger
	facts    facts
	profiles sync.Map   // capabilities → seccomp profile
	foreign  *foreign   // nil without shims
	parser   sync.Mutex // one AppArmor profile is loaded at a time

	mu      sync.Mutex
	cgroups map[container.ID]map[string]string
	waiting map[container.ID]int // pids of created processes
	first   map[container.ID]proc.Process
}

type facts struct {
	cgroup2      bool
	swapLimit    bool
	appArmor     bool
	sysResource  bool
	seccomp      bool
	oomScore     int
	capabilities []string
	rlimits      map[string]uint64 // hard limits of this process
	cpus         int
}

// New looks at the host and finds the containers that run.
func New(o Options) (*Runtime, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ScopePrefix == "" {
		o.ScopePrefix = "berth"
	}
	if o.Dir == "" {
		o.Dir = "/run/berth/task"
	}
	if err := cleanBinds(filepath.Join(o.Dir, "binds")); err != nil {
		return nil, err
	}
	h := host.Look()
	caps, err := knownCapabilities()
	if err != nil {
		return nil, err
	}
	r := &Runtime{o: o, log: o.Logger, cgroups: map[container.ID]map[string]string{}, waiting: map[container.ID]int{}, first: map[container.ID]proc.Process{}, facts: facts{
		cgroup2: h.CgroupMode == host.CgroupV2, swapLimit: h.SwapLimit, appArmor: h.AppArmor && h.AppArmorParser, sysResource: h.SysResource, seccomp: h.Seccomp, cpus: h.CPUs,
		capabilities: caps, rlimits: hardLimits(), oomScore: ownOOMScore(),
	}}
	if r.foreign, err = newForeign(context.Background(), o); err != nil {
		return nil, err
	}
	all, err := o.Keeper.List(context.Background())
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.ExecID == "" {
			r.cgroups[p.ID], r.first[p.ID] = p.Cgroups, proc.Process{Pid: p.Pid, Start: p.StartTime}
		}
	}
	for _, t := range r.foreign.list(context.Background()) {
		r.first[t.ID] = proc.Of(t.Pid)
	}
	return r, nil
}

// Create makes the first process of a container, stopped before its program.
func (r *Runtime) Create(ctx context.Context, b container.Bundle) (int, container.Pipes, error) {
	c := b.Container
	if err := r.relabel(b); err != nil {
		return 0, container.Pipes{}, err
	}
	b, held, err := r.resolve(b)
	if err != nil {
		return 0, container.Pipes{}, err
	}
	defer func() {
		if err := held.drop(); err != nil {
			r.log.Warn("mounts not dropped", "container", c.ID, "error", err)
		}
	}()
	s, err := r.spec(b)
	if err != nil {
		return 0, container.Pipes{}, err
	}
	other, own, err := r.foreign.runtime(c.Spec.Runtime)
	if err != nil {
		return 0, container.Pipes{}, err
	}
	streams := Streams{TTY: c.Spec.TTY, Stdin: c.Spec.OpenStdin, Stdout: true, Stderr: !c.Spec.TTY}
	var started Started
	if !own {
		if started, err = r.foreign.create(ctx, other, c, s, streams); err != nil {
			return 0, container.Pipes{}, word("failed to create task for container: ", err)
		}
	} else if started, err = r.o.Keeper.Create(ctx, string(c.ID), s, streams); err != nil {
		return 0, container.Pipes{}, word("failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: ", err)
	}
	r.mu.Lock()
	r.cgroups[c.ID], r.waiting[c.ID] = started.Cgroups, started.Pid
	r.first[c.ID] = proc.Process{Pid: started.Pid, Start: started.StartTime}
	if started.StartTime == 0 {
		r.first[c.ID] = proc.Of(started.Pid)
	}
	r.mu.Unlock()
	// Whose namespaces it has joined by their pid must have been there until now.
	if err := r.lasted(b.Namespace); err != nil {
		closePipes(started.Pipes)
		return started.Pid, container.Pipes{}, err
	}
	return started.Pid, started.Pipes, nil
}

// Root opens the root of a running container as its first process sees it.
func (r *Runtime) Root(id container.ID) (*os.File, error) {
	r.mu.Lock()
	first := r.first[id]
	r.mu.Unlock()
	root, err := first.Root()
	if errors.Is(err, proc.ErrGone) {
		return nil, fault.Conflictf("container %s is not running", id)
	}
	return root, err
}

// lasted tells whether the containers whose namespaces are joined still run.
func (r *Runtime) lasted(namespaces map[string]string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for kind, path := range namespaces {
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/ns/", &pid); err != nil {
			continue // one that a mount holds
		}
		now, there := proc.Of(pid), false
		for _, first := range r.first {
			there = there || first == now
		}
		if !there {
			return fault.Conflictf("cannot join %s namespace of a non running container", kind)
		}
	}
	return nil
}

// word gives a failure the text by which docker's clients tell a missing
// program (exit code 127) from one that may not run (126).
func word(prefix string, err error) error {
	text := err.Error()
	var class error = fault.ErrInternal
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		class = fault.ErrNotFound
	case strings.Contains(text, "not a directory"):
		class = fault.ErrNotFound
		text += ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
	case strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"):
		class = fault.ErrPermission
	case errors.Is(err, fault.ErrUnavailable):
		return err
	case errors.Is(err, fault.ErrInvalid):
		class = fault.ErrInvalid
	}
	// containerd's suffix for an error it has no class for.
	return &fault.Error{Class: class, Msg: prefix + strings.TrimSuffix(text, ": unknown") + ": unknown"}
}

// Start lets the first process run its program.
func (r *Runtime) Start(ctx context.Context, id container.ID) error {
	if s := r.foreign.find(id); s != nil {
		if err := s.task.Start(r.foreign.in(ctx)); err != nil {
			return word("failed to start task for container: ", err)
		}
		return nil
	}
	r.mu.Lock()
	waiting := r.waiting[id]
	delete(r.waiting, id)
	r.mu.Unlock()
	before := comm(waiting)
	if err := r.o.Keeper.Start(ctx, string(id)); err != nil {
		return word("failed to start task for container: ", err)
	}
	replaced(waiting, before)
	return nil
}

// Bounds of the wait for a program to have taken its process over.
const (
	replaceLimit = 250 * time.Millisecond
	replaceStep  = 100 * time.Microsecond
)

// replaced waits until a process runs its program, or is gone: who has
// started a container must not see its maker in it.
func replaced(pid int, before string) {
	for end := time.Now().Add(replaceLimit); before != "" && comm(pid) == before && time.Now().Before(end); {
		time.Sleep(replaceStep)
	}
}

// comm is a process's name, which exec changes; "" of none.
func comm(pid int) string {
	if pid == 0 {
		return ""
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return string(b)
}

// Exec starts a further process. c is the container it runs in.
func (r *Runtime) Exec(ctx context.Context, id container.ID, execID string, c container.Container, s container.ExecSpec) (int, container.Pipes, error) {
	var none container.Pipes
	cwd := s.WorkingDir
	if cwd == "" {
		cwd = c.Spec.WorkingDir
	}
	name := s.User
	if name == "" {
		name = c.Spec.User
	}
	root, err := r.Root(id)
	if err != nil {
		return 0, none, err
	}
	defer root.Close()
	p, err := r.process(fmt.Sprintf("/proc/self/fd/%d", root.Fd()), c, processSpec{
		args: s.Cmd, env: append(append([]string(nil), c.Spec.Env...), s.Env...), user: name, cwd: cwd,
		tty: s.TTY, privileged: s.Privileged || c.Spec.Privileged, size: s.ConsoleSize,
	})
	if err != nil {
		return 0, none, err
	}
	streams := Streams{TTY: s.TTY, Stdin: s.Stdin, Stdout: true, Stderr: !s.TTY}
	var started Started
	if f := r.foreign.find(id); f != nil {
		if started, err = r.foreign.exec(ctx, f, id, execID, p, streams); err != nil {
			return 0, none, word("", err)
		}
	} else if started, err = r.o.Keeper.Exec(ctx, string(id), execID, p, streams); err != nil {
		return 0, none, word("OCI runtime exec failed: exec failed: ", err)
	}
	return started.Pid, started.Pipes, nil
}

// Pipes gives the streams of a process found again after a restart.
func (r *Runtime) Pipes(ctx context.Context, id container.ID, execID string) (container.Pipes, error) {
	if r.foreign.find(id) != nil {
		return openPipes(r.foreign.pipes(id, execID))
	}
	return r.o.Keeper.Pipes(ctx, string(id), execID)
}

// Kill sends a signal to one process.
func (r *Runtime) Kill(ctx context.Context, id container.ID, execID string, sig syscall.Signal) error {
	if s := r.foreign.find(id); s != nil {
		return r.foreign.kill(ctx, s, execID, sig)
	}
	return r.o.Keeper.Kill(ctx, string(id), execID, int(sig))
}

// Resize sets a terminal's size in characters.
func (r *Runtime) Resize(ctx context.Context, id container.ID, execID string, height, width uint16) error {
	if s := r.foreign.find(id); s != nil {
		p, err := r.foreign.process(s, execID)
		if err != nil {
			return err
		}
		return p.Resize(r.foreign.in(ctx), uint32(width), uint32(height))
	}
	return r.o.Keeper.Resize(ctx, string(id), execID, height, width)
}

// CloseStdin lets a process see the end of its input.
func (r *Runtime) CloseStdin(ctx context.Context, id container.ID, execID string) error {
	if s := r.foreign.find(id); s != nil {
		return r.foreign.closeInput(ctx, s, execID)
	}
	return r.o.Keeper.CloseStdin(ctx, string(id), execID)
}

// Pause freezes a container.
func (r *Runtime) Pause(ctx context.Context, id container.ID) error {
	if s := r.foreign.find(id); s != nil {
		return s.task.Pause(r.foreign.in(ctx))
	}
	err := r.o.Keeper.Pause(ctx, string(id))
	if err != nil && (errors.Is(err, fault.ErrNotFound) || strings.Contains(err.Error(), "not running")) {
		return fault.Conflictf("container %s is not running", id)
	}
	return err
}

// Resume thaws it.
func (r *Runtime) Resume(ctx context.Context, id container.ID) error {
	if s := r.foreign.find(id); s != nil {
		return s.task.Resume(r.foreign.in(ctx))
	}
	return r.o.Keeper.Resume(ctx, string(id))
}

// Update changes the limits of a running container.
func (r *Runtime) Update(ctx context.Context, c container.Container, res container.Resources) error {
	if res.Memory > 0 && res.MemorySwap == 0 && c.Spec.Resources.MemorySwap == 0 {
		// Nobody ever spoke of swap: it follows memory.
		res.MemorySwap = res.Memory * 2
	}
	out, err := r.limits(res)
	if err != nil {
		return err
	}
	if s := r.foreign.find(c.ID); s != nil {
		return s.task.Update(r.foreign.in(ctx), client.WithResources(out))
	}
	return r.o.Keeper.Update(ctx, string(c.ID), out)
}

// Pids lists a container's processes as the host numbers them.
func (r *Runtime) Pids(ctx context.Context, id container.ID) ([]int, error) {
	if s := r.foreign.find(id); s != nil {
		return r.foreign.pids(ctx, s)
	}
	return r.o.Keeper.Pids(ctx, string(id))
}

// Delete forgets an exited process; what may be left of a container is killed.
func (r *Runtime) Delete(ctx context.Context, id container.ID, execID string) error {
	if execID == "" {
		r.mu.Lock()
		delete(r.first, id)
		r.mu.Unlock()
	}
	if s := r.foreign.find(id); s != nil {
		return r.foreign.delete(ctx, s, id, execID)
	}
	if execID == "" && r.foreign.forget(id) {
		return nil
	}
	err := r.o.Keeper.Delete(ctx, string(id), execID)
	if execID == "" && err == nil {
		r.mu.Lock()
		delete(r.cgroups, id)
		delete(r.waiting, id)
		r.mu.Unlock()
	}
	return err
}

// Tasks lists all first processes that are known.
func (r *Runtime) Tasks(ctx context.Context) ([]container.Task, error) {
	all, err := r.o.Keeper.List(ctx)
	if err != nil {
		return nil, err
	}
	var tasks []container.Task
	for _, p := range all {
		if p.ExecID == "" {
			tasks = append(tasks, p.Task)
		}
	}
	return append(tasks, r.foreign.list(ctx)...), nil
}

// Exits delivers each exit, those first that happened while nobody listened.
// Each is acknowledged to the keeper once the receiver has taken it; until the
// process is deleted, Tasks still tells of it.
func (r *Runtime) Exits(ctx context.Context) <-chan container.Exit {
	out := make(chan container.Exit)
	go func() {
		defer close(out)
		var others chan container.Exit
		if r.foreign != nil {
			others = r.foreign.exits
		}
		for {
			select {
			case e := <-others:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case e := <-r.o.Keeper.Exits():
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
				if err := r.o.Keeper.Ack(ctx, string(e.ContainerID), e.ExecID); err != nil && ctx.Err() == nil {
					r.log.Warn("exit not acknowledged", "container", e.ContainerID, "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func hardLimits() map[string]uint64 {
	limits := map[string]uint64{}
	for name, kind := range map[string]int{
		"CORE": unix.RLIMIT_CORE, "CPU": unix.RLIMIT_CPU, "DATA": unix.RLIMIT_DATA, "FSIZE": unix.RLIMIT_FSIZE, "LOCKS": unix.RLIMIT_LOCKS,
		"MEMLOCK": unix.RLIMIT_MEMLOCK, "MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE, "NOFILE": unix.RLIMIT_NOFILE,
		"NPROC": unix.RLIMIT_NPROC, "RSS": unix.RLIMIT_RSS, "RTPRIO": unix.RLIMIT_RTPRIO, "RTTIME": unix.RLIMIT_RTTIME,
		"SIGPENDING": unix.RLIMIT_SIGPENDING, "STACK": unix.RLIMIT_STACK, "AS": unix.RLIMIT_AS,
	} {
		var l unix.Rlimit
		if unix.Getrlimit(kind, &l) == nil {
			limits["RLIMIT_"+name] = l.Max
		}
	}
	return limits
}

func ownOOMScore() (score int) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err == nil {
		_, _ = fmt.Sscan(string(b), &score)
	}
	return score
}

// Close removes the parent cgroup where it is empty.
func (r *Runtime) Close() {
	parent := filepath.Join("/", r.o.CgroupParent)
	if r.o.Systemd || parent == "/" {
		return
	}
	_ = os.Remove("/sys/fs/cgroup" + parent)
	controllers, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return
	}
	for _, c := range controllers {
		if c.IsDir() {
			// Fails where anything still runs in it, which is as it should be.
			_ = os.Remove(filepath.Join("/sys/fs/cgroup", c.Name(), parent))
		}
	}
}
