package serve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

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
	// recovered says that pipes were found again, and that who holds the true ones may replace them.
	recovered bool
	fifos     keeper.Fifos
	gone      chan struct{} // closed when it has exited
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
	if k.containers[r.ID] != nil {
		k.mu.Unlock()
		return nil, none, &fault.Error{Class: fault.ErrExists, Noun: "container", ID: r.ID}
	}
	c := &container{id: r.ID, procs: map[string]*process{}, created: true, shared: !config.Namespaces.IsPrivate(configs.NEWPID)}
	k.containers[r.ID] = c // reserves the id
	k.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	k.kids.forks.RLock()
	defer k.kids.forks.RUnlock()

	forget := func() {
		k.mu.Lock()
		delete(k.containers, r.ID)
		k.mu.Unlock()
	}
	// What a keeper that is killed from here on leaves, the next one must find.
	making := filepath.Join(k.dir, "making", r.ID)
	if err := write(making, half{r.ID, config.Cgroups.Systemd, config.Cgroups.Path, config.Cgroups.Name, config.Cgroups.Parent, config.Cgroups.ScopePrefix}); err != nil {
		forget()
		return nil, none, err
	}
	defer func() { _ = os.Remove(making) }()
	if c.lib, err = libcontainer.Create(filepath.Join(k.dir, "state"), r.ID, config); err != nil {
		forget()
		return nil, none, err
	}
	lp, err := newProcess(r.Spec.Process)
	if err != nil {
		forget()
		return nil, none, errors.Join(err, c.lib.Destroy())
	}
	lp.Init = true
	p := &process{Process: keeper.Process{Ref: keeper.Ref{ID: r.ID}, Streams: r.Streams}, lib: lp, fifos: r.Fifos, gone: make(chan struct{})}
	if err := k.launch(c, p); err != nil {
		forget()
		if destroyed := c.lib.Destroy(); destroyed != nil {
			k.log.Warn("failed container not destroyed", "container", r.ID, "error", destroyed)
		}
		return nil, none, err
	}
	return keeper.Started{Pid: p.Pid, Streams: p.Streams, Cgroups: c.cgroups}, p.pipes, nil
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
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		// A process that joins a frozen cgroup never comes back.
		return nil, none, fault.Conflictf("container %s is paused, unpause the container before exec", r.ID)
	}
	k.kids.forks.RLock()
	defer k.kids.forks.RUnlock()
	if c.procs[r.Exec] != nil {
		return nil, none, &fault.Error{Class: fault.ErrExists, Noun: "exec", ID: r.Exec}
	}
	if first := c.procs[""]; first == nil || first.Exit != nil {
		return nil, none, fault.Conflictf("container %s is not running", r.ID)
	}
	p := &process{Process: keeper.Process{Ref: r.Ref, Streams: r.Streams}, lib: lp, fifos: r.Fifos, gone: make(chan struct{})}
	if err := k.launch(c, p); err != nil {
		return nil, none, err
	}
	return keeper.Started{Pid: p.Pid, Streams: p.Streams}, p.pipes, nil
}

// launch opens a process's streams, starts it, writes its record and watches
// it. c.mu is held. Nothing is left of a failure.
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
	k.kids.add(p.Pid)
	k.noticeOOM(c, p)
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
		return c.lib.Start(p.lib)
	}
	p.lib.ExtraFiles = k.filters.Files(config.Seccomp)
	if config.Seccomp != nil && len(p.lib.ExtraFiles) == 0 {
		return c.lib.Start(p.lib)
	}
	if first := c.procs[""]; p.Exec != "" && first.watch != nil {
		pidfd, err := first.watch.duplicate()
		if errors.Is(err, os.ErrClosed) {
			return fault.Conflictf("container %s is not running", c.id)
		}
		if err != nil {
			return err
		}
		defer pidfd.Close()
		switch proc, err := steps.Join(config, p.lib, c.id, steps.Place{First: pidfd, Cgroups: c.cgroups}); {
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
	return c.lib.Start(p.lib)
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
		// Kills the whole container where the processes share a pid namespace,
		// and thaws a frozen cgroup so that the signal is heard.
		err = c.lib.Signal(unix.SIGKILL)
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
			if err := c.lib.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
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
		k.kids.forks.RLock()
		err := c.lib.Destroy()
		k.kids.forks.RUnlock()
		if err != nil && !errors.Is(err, cgroups.ErrDevicesUnsupported) {
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
	return p.pipes, nil
}

func (k *server) list() []keeper.Process {
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
