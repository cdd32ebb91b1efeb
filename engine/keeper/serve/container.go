package serve

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/engine/keeper/serve/steps"
	"github.com/berth-project/berth/lib/fault"
)

// runcVersion is the release of the libcontainer that is linked (go.mod).
const runcVersion = "1.5.2"

// container is one container with its processes.
type container struct {
	id      string
	lib     *libcontainer.Container
	cgroups map[string]string
	shared  bool // its processes are not in a pid namespace of its own

	mu      sync.Mutex
	procs   map[string]*process // by exec id; "" is the first
	joining map[string]bool     // execs that are being started
	created bool                // the first process waits before its program
	paused  bool
}

// process is one process of a container.
type process struct {
	keeper.Process
	lib   *libcontainer.Process
	child child  // nil where adopted
	watch *watch // nil where it had ended before it was found
	pipes keeper.Pipes
	fifos keeper.Fifos
	gone  chan struct{} // closed when it has exited
	// Who started it hears of its exit after it has the streams, which are
	// deleted then. Of an adopted process answered is nil.
	answer   keeper.Pipes
	answered chan struct{}
}

func (k *server) create(r keeper.CreateRequest) (any, keeper.Pipes, error) {
	var none keeper.Pipes
	if err := checkRef(keeper.Ref{ID: r.ID}); err != nil {
		return nil, none, err
	}
	if r.Spec == nil || r.Spec.Process == nil || r.Spec.Root == nil || r.Spec.Linux == nil {
		return nil, none, fault.Invalidf("create %s: the specification is incomplete", r.ID)
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       r.ID,
		UseSystemdCgroup: r.Systemd,
		Spec:             r.Spec,
	})
	if err != nil {
		return nil, none, err
	}
	k.mu.Lock()
	if k.containers[r.ID] != nil || k.making[r.ID] != nil {
		k.mu.Unlock()
		return nil, none, &fault.Error{Class: fault.ErrExists, Noun: "container", ID: r.ID}
	}
	over := make(chan struct{})
	k.making[r.ID] = over
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.making, r.ID)
		k.mu.Unlock()
		close(over)
	}()
	c := &container{id: r.ID, procs: map[string]*process{}, joining: map[string]bool{}, created: true, shared: !config.Namespaces.IsPrivate(configs.NEWPID)}
	// What a keeper that is killed from here on leaves, the next one must find.
	making := filepath.Join(k.dir, "making", r.ID)
	if err := write(making, half{r.ID, config.Cgroups.Systemd, config.Cgroups.Path, config.Cgroups.Name, config.Cgroups.Parent, config.Cgroups.ScopePrefix}); err != nil {
		return nil, none, err
	}
	defer func() { _ = os.Remove(making) }()
	if c.lib, err = libcontainer.Create(filepath.Join(k.dir, "state"), r.ID, config); err != nil {
		return nil, none, err
	}
	lp, err := newProcess(r.Spec.Process)
	if err != nil {
		return nil, none, errors.Join(err, k.destroy(c))
	}
	lp.Init = true
	p := &process{Process: keeper.Process{Ref: keeper.Ref{ID: r.ID}, Streams: r.Streams}, lib: lp, fifos: r.Fifos, gone: make(chan struct{}), answered: make(chan struct{})}
	if err := k.launch(c, p); err != nil {
		if destroyed := k.destroy(c); destroyed != nil {
			k.log.Warn("failed container not destroyed", "container", r.ID, "error", destroyed)
		}
		return nil, none, err
	}
	return starting{keeper.Started{Pid: p.Pid, StartTime: p.StartTime, Streams: p.Streams, Cgroups: c.cgroups}, p}, p.answer, nil
}

func (k *server) exec(r keeper.ExecRequest) (any, keeper.Pipes, error) {
	var none keeper.Pipes
	c, err := k.container(r.ID)
	if err != nil {
		return nil, none, err
	}
	if r.Process == nil || r.Exec == "" {
		return nil, none, fault.Invalidf("exec in %s: the request is incomplete", r.ID)
	}
	if err := checkRef(r.Ref); err != nil {
		return nil, none, err
	}
	lp, err := newProcess(r.Process)
	if err != nil {
		return nil, none, err
	}
	if err := c.admit(r.Exec); err != nil {
		return nil, none, err
	}
	defer c.leave(r.Exec)
	p := &process{Process: keeper.Process{Ref: r.Ref, Streams: r.Streams}, lib: lp, fifos: r.Fifos, gone: make(chan struct{}), answered: make(chan struct{})}
	if err := k.launch(c, p); err != nil {
		return nil, none, err
	}
	return starting{keeper.Started{Pid: p.Pid, Streams: p.Streams}, p}, p.answer, nil
}

// admit says whether a further process may join, and reserves its name. The
// container stays unlocked while it joins: processes of the container can hold
// that up as long as they like, and it must still be killed.
func (c *container) admit(exec string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		// A process that joins a frozen cgroup never comes back.
		return fault.Conflictf("container %s is paused, unpause the container before exec", c.id)
	}
	if c.procs[exec] != nil || c.joining[exec] {
		return &fault.Error{Class: fault.ErrExists, Noun: "exec", ID: exec}
	}
	if !c.runs() {
		return fault.Conflictf("container %s is not running", c.id)
	}
	c.joining[exec] = true
	return nil
}

func (c *container) leave(exec string) {
	c.mu.Lock()
	delete(c.joining, exec)
	c.mu.Unlock()
}

// runs tells whether the first process has not been seen to end. c.mu is held.
func (c *container) runs() bool {
	first := c.procs[""]
	return first != nil && first.Exit == nil
}

// launch opens a process's streams, starts it, writes its record and watches
// it. Nothing is left of a failure.
func (k *server) launch(c *container, p *process) (err error) {
	theirs, err := p.open()
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			p.pipes.Close()
			p.pipes = keeper.Pipes{}
		}
	}()
	if err != nil {
		return err
	}
	config := c.lib.Config()
	if err := k.spawn(c, &config, p); err != nil {
		return err
	}
	fail := func(err error) error {
		_ = p.child.Signal(unix.SIGKILL)
		_, _ = p.child.Wait()
		if pid, failed := p.child.Pid(); failed == nil {
			k.kids.Gone(pid)
		}
		return err
	}
	if p.Streams.TTY {
		if p.pipes.TTY, err = receiveTTY(theirs[1]); err != nil {
			return fail(fmt.Errorf("receive terminal: %w", err))
		}
	}
	if p.Pid, err = p.child.Pid(); err != nil {
		return fail(err)
	}
	if p.watch, err = newWatch(p.Pid); err != nil {
		return fail(fmt.Errorf("watch process: %w", err))
	}
	p.StartTime = startTime(p.Pid)
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Exec != "" && !c.runs() {
		p.watch.close()
		return fail(fault.Conflictf("container %s is not running", c.id))
	}
	if p.Exec == "" {
		state, err := c.lib.State()
		if err != nil {
			p.watch.close()
			return fail(err)
		}
		c.cgroups = state.CgroupPaths
	}
	p.Cgroups = c.cgroups
	p.Created = p.Exec == ""
	if err := write(k.procPath(p.Ref), p.Process); err != nil {
		p.watch.close()
		return fail(err)
	}
	c.procs[p.Exec] = p
	if p.Exec == "" {
		k.mu.Lock()
		k.containers[c.id] = c
		k.mu.Unlock()
	}
	k.noticeOOM(c, p)
	p.answer = p.pipes.Duplicate()
	go k.attend(c, p)
	return nil
}

// child is a process that is ours to wait for.
type child interface {
	Pid() (int, error)
	Wait() (*os.ProcessState, error)
	Signal(os.Signal) error
}

// joined is a child that joined a running container by itself.
type joined struct{ *os.Process }

func (j joined) Pid() (int, error) { return j.Process.Pid, nil }

// spawn starts a process the shortest way that it can go: a further one of a
// container by its plan alone, the first one by libcontainer and a plan, and
// what is not plain by libcontainer.
func (k *server) spawn(c *container, config *configs.Config, p *process) error {
	p.child = p.lib
	if k.plain {
		return k.startByLibcontainer(c, p)
	}
	p.lib.ExtraFiles = k.filters.Files(config.Seccomp)
	if config.Seccomp != nil && len(p.lib.ExtraFiles) == 0 {
		return k.startByLibcontainer(c, p)
	}
	if p.Exec != "" {
		c.mu.Lock()
		first, groups := c.procs[""], c.cgroups
		c.mu.Unlock()
		if first == nil || first.watch == nil {
			return fault.Conflictf("container %s is not running", c.id)
		}
		pidfd, err := first.watch.duplicate()
		if errors.Is(err, os.ErrClosed) {
			return fault.Conflictf("container %s is not running", c.id)
		}
		if err != nil {
			return err
		}
		defer pidfd.Close()
		switch proc, err := steps.Join(config, p.lib, c.id, steps.Place{First: pidfd, Cgroups: groups, Forks: &k.kids}); {
		case err != nil:
			return err
		case proc != nil:
			p.child = joined{proc}
			return nil
		}
	}
	plan, err := steps.File(config, p.lib, c.id)
	if err != nil {
		return err
	}
	if plan != nil {
		p.lib.ExtraFiles = append(p.lib.ExtraFiles, plan)
		defer plan.Close()
	}
	return k.startByLibcontainer(c, p)
}

// startByLibcontainer keeps the reaper from children that only libcontainer knows.
func (k *server) startByLibcontainer(c *container, p *process) error {
	k.kids.forks.RLock()
	defer k.kids.forks.RUnlock()
	if err := c.lib.Start(p.lib); err != nil {
		return err
	}
	if pid, err := p.lib.Pid(); err == nil {
		k.kids.add(pid)
	}
	return nil
}

// destroy removes what libcontainer has of a container; hooks are its children.
func (k *server) destroy(c *container) error {
	k.kids.forks.RLock()
	defer k.kids.forks.RUnlock()
	return c.lib.Destroy()
}

func (k *server) start(id string) error {
	c, err := k.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[""]
	if !c.created || p == nil {
		return fault.Conflictf("container %s was started before", id)
	}
	if c.paused {
		return fault.Conflictf("container %s is paused", id)
	}
	k.kids.forks.RLock()
	err = c.lib.Exec()
	k.kids.forks.RUnlock()
	if err != nil {
		return err
	}
	c.created, p.Created = false, false
	return write(k.procPath(p.Ref), p.Process)
}

func (k *server) process(r keeper.Ref) (*container, *process, error) {
	c, err := k.container(r.ID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[r.Exec]
	if p == nil {
		return nil, nil, fault.NotFound("process", fileName(r))
	}
	return c, p, nil
}

func (k *server) kill(r keeper.KillRequest) error {
	c, p, err := k.process(r.Ref)
	if err != nil {
		return err
	}
	if r.All {
		return c.signalAll(unix.Signal(r.Signal))
	}
	select {
	case <-p.gone:
		return fault.NotFoundf("process %s has finished", fileName(r.Ref))
	default:
	}
	if r.Exec == "" && r.Signal == int(unix.SIGKILL) {
		// By itself first: libcontainer waits for starts of its own, which
		// processes of the container can hold up.
		err = p.watch.signal(unix.SIGKILL)
		if c.shared {
			err = errors.Join(err, c.signalAll(unix.SIGKILL))
		}
		if err == nil {
			// Thaws a frozen cgroup, so that the signal is heard.
			if err = c.lib.Signal(unix.SIGKILL); errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, os.ErrProcessDone) {
				err = nil
			}
		}
	} else {
		err = p.watch.signal(unix.Signal(r.Signal))
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrClosed) {
		return fault.NotFoundf("process %s has finished", fileName(r.Ref))
	}
	return err
}

func (c *container) signalAll(s unix.Signal) error {
	pids, err := c.lib.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func (k *server) resize(r keeper.ResizeRequest) error {
	c, p, err := k.process(r.Ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	tty := p.pipes.TTY
	c.mu.Unlock()
	if tty == nil {
		return fault.Invalidf("process %s has no terminal", fileName(r.Ref))
	}
	// Not Fd: it would make the daemon's duplicate block too.
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: r.Height, Col: r.Width})
	}); failed != nil {
		return failed
	}
	return err
}

func (k *server) closeStdin(r keeper.Ref) error {
	c, p, err := k.process(r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.pipes.Stdin == nil {
		return nil
	}
	err = p.pipes.Stdin.Close()
	p.pipes.Stdin, p.Streams.Stdin = nil, false
	return err
}

func (k *server) pause(id string, pause bool) error {
	c, err := k.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if pause {
		err = c.lib.Pause()
	} else {
		err = c.lib.Resume()
	}
	if err == nil {
		c.paused = pause
	}
	return err
}

func (k *server) update(r keeper.UpdateRequest) error {
	c, err := k.container(r.ID)
	if err != nil {
		return err
	}
	if r.Resources == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	config := c.lib.Config()
	resources := *config.Cgroups.Resources
	apply(&resources, r.Resources)
	group := *config.Cgroups
	group.Resources = &resources
	config.Cgroups = &group
	return c.lib.Set(config)
}

func (k *server) pids(id string) ([]int, error) {
	c, err := k.container(id)
	if err != nil {
		return nil, err
	}
	return c.lib.Processes()
}

func (k *server) delete(r keeper.Ref) error {
	c, p, err := k.process(r)
	if err != nil {
		return err
	}
	if r.Exec == "" {
		select {
		case <-p.gone:
		default:
			if err := k.kill(keeper.KillRequest{Ref: r, Signal: int(unix.SIGKILL)}); err != nil && !errors.Is(err, fault.ErrNotFound) {
				return err
			}
		}
	} else {
		select {
		case <-p.gone:
		default:
			return fault.Conflictf("process %s still runs", fileName(r))
		}
	}
	<-p.gone
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Exec == "" {
		if err := k.destroy(c); err != nil && !errors.Is(err, cgroups.ErrDevicesUnsupported) {
			return err
		}
		for id, e := range c.procs {
			if id != "" {
				e.pipes.Close()
				k.erase(e.Ref)
			}
		}
	}
	p.pipes.Close()
	k.erase(r)
	delete(c.procs, r.Exec)
	if r.Exec == "" {
		k.mu.Lock()
		delete(k.containers, r.ID)
		k.mu.Unlock()
	}
	return nil
}

func (k *server) erase(r keeper.Ref) {
	_ = os.Remove(k.procPath(r))
	_ = k.exits.forget(r)
}

func (k *server) pipes(r keeper.Ref) (keeper.Pipes, error) {
	c, p, err := k.process(r)
	if err != nil {
		return keeper.Pipes{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Streams == (keeper.StreamSet{}) && p.Exit == nil {
		// A daemon that lived on would have given them back.
		c.recoverOutputs(p)
	}
	return p.pipes.Duplicate(), nil
}

// makingLimit is how long a list waits for containers that are being made:
// another container's processes can hold up one that shares their pid namespace.
const makingLimit = 5 * time.Second

func (k *server) list() []keeper.Process {
	k.mu.Lock()
	making := slices.Collect(maps.Values(k.making))
	k.mu.Unlock()
	limit := time.After(makingLimit)
wait:
	for _, over := range making {
		select {
		case <-over:
		case <-limit:
			break wait
		}
	}
	k.mu.Lock()
	all := make([]*container, 0, len(k.containers))
	for _, c := range k.containers {
		all = append(all, c)
	}
	k.mu.Unlock()
	list := []keeper.Process{}
	for _, c := range all {
		c.mu.Lock()
		for _, p := range c.procs {
			one := p.Process
			switch {
			case one.Exit != nil:
				one.Status = "exited"
			case one.Exec == "" && c.created:
				one.Status = "created"
			case c.paused:
				one.Status = "paused"
			default:
				one.Status = "running"
			}
			list = append(list, one)
		}
		c.mu.Unlock()
	}
	return list
}
