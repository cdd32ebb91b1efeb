package serve

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// adopt finds what another keeper left: its containers go on, watched by pid
// and start time. Their pipes come back from the daemon; where it died too,
// those of output are found when they are asked for.
func (k *server) adopt() error {
	records, err := readAll[keeper.Process](filepath.Join(k.dir, "procs"), k.log)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Exec != "" {
			continue
		}
		lib, err := libcontainer.Load(filepath.Join(k.dir, "state"), r.ID)
		if err != nil {
			k.log.Error("container not adopted", "container", r.ID, "error", err)
			k.erase(r.Ref)
			continue
		}
		config := lib.Config()
		status, _ := lib.Status()
		k.containers[r.ID] = &container{
			id: r.ID, lib: lib, cgroups: r.Cgroups, procs: map[string]*process{}, joining: map[string]bool{},
			created: r.Created, paused: status == libcontainer.Paused,
			shared: !config.Namespaces.IsPrivate(configs.NEWPID),
		}
	}
	for _, r := range records {
		if c := k.containers[r.ID]; c != nil {
			k.adoptProcess(c, r)
		} else {
			k.erase(r.Ref)
		}
	}
	return errors.Join(k.sweep(), k.sweepCgroups())
}

// sweep ends what a keeper was making when it died: nobody was told of it.
func (k *server) sweep() error {
	root := filepath.Join(k.dir, "state")
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if k.containers[e.Name()] != nil {
			continue
		}
		k.log.Warn("half-made container removed", "container", e.Name())
		if lib, err := libcontainer.Load(root, e.Name()); err == nil {
			if err = end(lib); err == nil {
				continue
			}
			k.log.Warn("half-made container not destroyed", "container", e.Name(), "error", err)
		}
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// half is a container that is being made, as a keeper writes it down that may
// not live to finish it.
type half struct {
	ID                              string
	Systemd                         bool
	Path, Name, Parent, ScopePrefix string // of its cgroup
}

// Bounds of the wait for the processes of a half-made container to be gone.
const (
	sweepPause = 100 * time.Millisecond
	sweepTries = 300
)

// sweepCgroups removes cgroups of containers that were never made. The kernel
// may take a while to end what is in them: that is waited for in the background.
func (k *server) sweepCgroups() error {
	records, err := readAll[half](filepath.Join(k.dir, "making"), k.log)
	if err != nil {
		return err
	}
	for _, h := range records {
		if k.containers[h.ID] != nil { // it was made, and its record left
			_ = os.Remove(filepath.Join(k.dir, "making", h.ID))
			continue
		}
		group := &cgroups.Cgroup{Systemd: h.Systemd, Path: h.Path, Name: h.Name, Parent: h.Parent, ScopePrefix: h.ScopePrefix, Resources: &cgroups.Resources{}}
		m, err := manager.New(group)
		if err != nil {
			return err
		}
		if err = endGroup(m); err == nil {
			_ = os.Remove(filepath.Join(k.dir, "making", h.ID))
			continue
		}
		k.sweeping.Go(func() {
			for try := 0; err != nil && try < sweepTries; try++ {
				time.Sleep(sweepPause)
				err = endGroup(m)
			}
			if err != nil {
				k.log.Warn("cgroup of a half-made container not removed", "container", h.ID, "error", err)
				return // the next keeper tries again
			}
			_ = os.Remove(filepath.Join(k.dir, "making", h.ID))
		})
	}
	return nil
}

// endGroup ends what is in a cgroup and removes it.
func endGroup(m cgroups.Manager) error {
	if pids, err := m.GetAllPids(); err == nil {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return m.Destroy()
}

// end kills a container that is no child of ours and destroys it.
func end(lib *libcontainer.Container) error {
	state, err := lib.State()
	if err != nil {
		return err
	}
	if w, err := newWatch(state.InitProcessPid); err == nil {
		defer w.close()
		if err := lib.Signal(unix.SIGKILL); err == nil {
			_ = w.file.SetReadDeadline(time.Now().Add(reapLimit))
			_ = w.poll(unix.POLLHUP)
		}
	}
	return lib.Destroy()
}

func (k *server) adoptProcess(c *container, r keeper.Process) {
	r.Streams = keeper.StreamSet{}
	p := &process{Process: r, gone: make(chan struct{})}
	c.procs[r.Exec] = p
	if r.Exit != nil {
		close(p.gone)
		return
	}
	w, err := newWatch(r.Pid)
	if err == nil && startTime(r.Pid) == r.StartTime {
		p.watch = w
		k.noticeOOM(c, p)
		go k.attend(c, p)
		return
	}
	if err == nil {
		w.close() // the number belongs to another process now
	}
	// It ended while no keeper lived, or just before the last one died.
	e, journaled := k.exits.one(r.Ref, r.Pid)
	if journaled {
		p.Exit = &e
		close(p.gone)
		return
	}
	e = keeper.Exit{Ref: r.Ref, Pid: r.Pid, Time: now(), Code: 137, Unknown: true}
	if r.Exec == "" {
		kills, _ := oomKills(c.cgroups) // gone with its cgroup, perhaps
		e.OOM = kills > 0
	}
	if err := k.exits.keep(e); err != nil {
		k.log.Error("exit not journaled", "container", r.ID, "error", err)
	}
	p.Exit = &e
	if err := write(k.procPath(r.Ref), p.Process); err != nil {
		k.log.Error("record not written", "container", r.ID, "error", err)
	}
	close(p.gone)
}

func (k *server) adoptPipes(r keeper.Ref, pipes keeper.Pipes) error {
	c, p, err := k.process(r)
	if err != nil {
		pipes.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if set, _ := p.pipes.List(); set != (keeper.StreamSet{}) {
		pipes.Close()
		return fault.Conflictf("process %s has its pipes", fileName(r))
	}
	p.pipes = pipes
	p.Streams, _ = pipes.List()
	return nil
}
