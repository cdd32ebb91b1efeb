package plugin

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	api "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/lib/fault"
)

// task is a container with its processes; it is its own first process too.
type task struct {
	*process
	namespace, id string
	key           string // the keeper's id
	bundle        string

	saving sync.Mutex // one record is written at a time

	all    sync.Mutex
	procs  map[string]*process // execs
	paused bool
}

func newTask(r *Runtime, namespace, id string, io runtime.IO) *task {
	t := &task{namespace: namespace, id: id, key: keeperID(namespace, id), bundle: filepath.Join(r.dir, namespace, id), procs: map[string]*process{}}
	t.process = newProcess(r, t, "", io)
	return t
}

func (t *task) processes() []*process {
	t.all.Lock()
	defer t.all.Unlock()
	list := []*process{t.process}
	for _, p := range t.procs {
		list = append(list, p)
	}
	return list
}

// Namespace is containerd's.
func (t *task) Namespace() string { return t.namespace }

// PID of the first process.
func (t *task) PID(context.Context) (uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint32(t.pid), nil
}

// Pause freezes all processes.
func (t *task) Pause(ctx context.Context) error { return t.freeze(ctx, true) }

// Resume thaws them.
func (t *task) Resume(ctx context.Context) error { return t.freeze(ctx, false) }

func (t *task) freeze(ctx context.Context, freeze bool) error {
	act, topic := t.r.keeper.Pause, runtime.TaskPausedEventTopic
	if !freeze {
		act, topic = t.r.keeper.Resume, runtime.TaskResumedEventTopic
	}
	if err := act(ctx, t.key); err != nil {
		return err
	}
	t.all.Lock()
	t.paused = freeze
	t.all.Unlock()
	if freeze {
		t.r.publish(t.namespace, topic, &api.TaskPaused{ContainerID: t.id})
	} else {
		t.r.publish(t.namespace, topic, &api.TaskResumed{ContainerID: t.id})
	}
	return nil
}

// Exec adds a process, which Start then starts.
func (t *task) Exec(_ context.Context, id string, o runtime.ExecOpts) (runtime.ExecProcess, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, err
	}
	if _, _, err := streams(o.IO); err != nil {
		return nil, err
	}
	p := newProcess(t.r, t, id, o.IO)
	p.spec = &specs.Process{}
	if err := typeurl.UnmarshalTo(o.Spec, p.spec); err != nil {
		return nil, fault.Invalidf("process of %s: %w", id, err)
	}
	p.spec.Terminal = o.IO.Terminal
	t.all.Lock()
	if t.procs[id] != nil {
		t.all.Unlock()
		return nil, fmt.Errorf("exec %s: %w", id, errdefs.ErrAlreadyExists)
	}
	t.procs[id] = p
	t.all.Unlock()
	if err := t.save(); err != nil {
		t.forget(id)
		return nil, err
	}
	t.r.publish(t.namespace, runtime.TaskExecAddedEventTopic, &api.TaskExecAdded{ContainerID: t.id, ExecID: id})
	return p, nil
}

func (t *task) forget(execID string) {
	t.all.Lock()
	delete(t.procs, execID)
	t.all.Unlock()
}

// Process gives an exec.
func (t *task) Process(_ context.Context, id string) (runtime.ExecProcess, error) {
	t.all.Lock()
	defer t.all.Unlock()
	if p := t.procs[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %s: %w", id, errdefs.ErrNotFound)
}

// Pids lists all processes as the host numbers them.
func (t *task) Pids(ctx context.Context) ([]runtime.ProcessInfo, error) {
	pids, err := t.r.keeper.Pids(ctx, t.key)
	if err != nil {
		return nil, err
	}
	execs := map[int]string{}
	for _, p := range t.processes() {
		if p.execID != "" {
			p.mu.Lock()
			execs[p.pid] = p.execID
			p.mu.Unlock()
		}
	}
	var list []runtime.ProcessInfo
	for _, pid := range pids {
		one := runtime.ProcessInfo{Pid: uint32(pid)}
		if id := execs[pid]; id != "" {
			one.Info = &options.ProcessDetails{ExecID: id}
		}
		list = append(list, one)
	}
	return list, nil
}

// Checkpoint is not supported.
func (t *task) Checkpoint(context.Context, string, *types.Any) error {
	return fault.Unsupportedf("checkpoints are not supported by runtime %s", Name)
}

// Update replaces limits.
func (t *task) Update(ctx context.Context, resources *types.Any, _ map[string]string) error {
	v, err := typeurl.UnmarshalAny(resources)
	if err != nil {
		return err
	}
	limits, ok := v.(*specs.LinuxResources)
	if !ok {
		return fault.Invalidf("limits of type %T", v)
	}
	return t.r.keeper.Update(ctx, t.key, limits)
}

// Stats reads the counters of the task's cgroup.
func (t *task) Stats(context.Context) (*types.Any, error) {
	t.mu.Lock()
	pid, ended := t.pid, t.exit != nil
	t.mu.Unlock()
	if ended {
		return nil, fmt.Errorf("task %s has ended: %w", t.id, errdefs.ErrNotFound)
	}
	var counters any
	if cgroups.Mode() == cgroups.Unified {
		path, err := cgroup2.PidGroupPath(pid)
		if err != nil {
			return nil, err
		}
		group, err := cgroup2.Load(path)
		if err != nil {
			return nil, err
		}
		if counters, err = group.Stat(); err != nil {
			return nil, err
		}
	} else {
		group, err := cgroup1.Load(cgroup1.PidPath(pid))
		if err != nil {
			return nil, err
		}
		if counters, err = group.Stat(cgroup1.IgnoreNotExist); err != nil {
			return nil, err
		}
	}
	return typeurl.MarshalAnyToProto(counters)
}
