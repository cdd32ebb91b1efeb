package serve

import (
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// adopt finds what another keeper left: its containers go on, watched by pid
// and start time. Their pipes come back from the daemon.
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
			id: r.ID, lib: lib, cgroups: r.Cgroups, procs: map[string]*process{},
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
	return nil
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
		go k.attend(c, p, w)
		return
	}
	if err == nil {
		w.close() // the number belongs to another process now
	}
	// It ended while no keeper lived.
	e := keeper.Exit{Ref: r.Ref, Pid: r.Pid, Time: now(), Code: 137, Unknown: true, OOM: r.Exec == "" && oomKilled(c.cgroups)}
	p.Exit = &e
	if err := write(k.procPath(r.Ref), p.Process); err != nil {
		k.log.Error("record not written", "container", r.ID, "error", err)
	}
	k.publish(e)
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
