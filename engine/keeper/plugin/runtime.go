package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// exitLimit is how long a deletion waits to hear of the exit it caused.
const exitLimit = 10 * time.Second

// Runtime implements containerd's PlatformRuntime.
//
//	dir/<namespace>/<id>/rootfs      where the root file system is mounted
//	dir/<namespace>/<id>/task.json   what a restarted daemon must know
type Runtime struct {
	shims  runtime.PlatformRuntime
	keeper *keeper.Client
	events events.Publisher
	log    *slog.Logger
	dir    string

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup

	mu    sync.Mutex
	tasks map[string]*task // by the keeper's id
}

func newRuntime(ctx context.Context, o Options, shims runtime.PlatformRuntime, p events.Publisher, dir string) (*Runtime, error) {
	r := &Runtime{shims: shims, keeper: o.Keeper, events: p, log: o.Logger, dir: dir, tasks: map[string]*task{}}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if err := r.restore(ctx); err != nil {
		return nil, fmt.Errorf("find tasks of the keeper: %w", err)
	}
	r.ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.work.Add(1)
	go r.hear()
	return r, nil
}

// Close leaves all tasks running.
func (r *Runtime) Close() error {
	r.stop()
	r.work.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tasks {
		for _, p := range t.processes() {
			p.pump.close()
		}
	}
	return nil
}

// ID is the name of the plugin whose place this one has.
func (r *Runtime) ID() string { return r.shims.ID() }

// keeperID keeps containerd's namespaces apart; no identifier of theirs holds the sign.
func keeperID(namespace, id string) string { return namespace + "+" + id }

func (r *Runtime) find(ctx context.Context, id string) (*task, bool, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tasks[keeperID(ns, id)]
	return t, ok, nil
}

// Get gives a task of either kind.
func (r *Runtime) Get(ctx context.Context, id string) (runtime.Task, error) {
	t, ok, err := r.find(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case ok:
		return t, nil
	}
	return r.shims.Get(ctx, id)
}

// Tasks lists tasks of both kinds.
func (r *Runtime) Tasks(ctx context.Context, all bool) ([]runtime.Task, error) {
	list, err := r.shims.Tasks(ctx, all)
	if err != nil {
		return nil, err
	}
	ns := ""
	if !all {
		if ns, err = namespaces.NamespaceRequired(ctx); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tasks {
		if all || t.namespace == ns {
			list = append(list, t)
		}
	}
	return list, nil
}

// Create makes a task with its first process, stopped before its program.
func (r *Runtime) Create(ctx context.Context, id string, o runtime.CreateOpts) (runtime.Task, error) {
	if !ours(o.Runtime) {
		return r.shims.Create(ctx, id, o)
	}
	if o.Checkpoint != "" {
		return nil, fault.Unsupportedf("restoring a checkpoint is not supported by runtime %s", Name)
	}
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	if err := identifiers.Validate(id); err != nil {
		return nil, err
	}
	t := newTask(r, ns, id, o.IO)
	r.mu.Lock()
	if r.tasks[t.key] != nil {
		r.mu.Unlock()
		return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrAlreadyExists)
	}
	r.tasks[t.key] = t
	r.mu.Unlock()
	if err := t.create(ctx, o); err != nil {
		t.clear()
		return nil, err
	}
	r.publish(ns, runtime.TaskCreateEventTopic, &api.TaskCreate{
		ContainerID: id, Bundle: t.bundle, Rootfs: mounts(o.Rootfs), Pid: uint32(t.pid),
		IO: &api.TaskIO{Stdin: o.IO.Stdin, Stdout: o.IO.Stdout, Stderr: o.IO.Stderr, Terminal: o.IO.Terminal},
	})
	return t, nil
}

func (t *task) create(ctx context.Context, o runtime.CreateOpts) error {
	var spec specs.Spec
	if err := typeurl.UnmarshalTo(o.Spec, &spec); err != nil {
		return fmt.Errorf("specification of %s: %w", t.id, errors.Join(errdefs.ErrInvalidArgument, err))
	}
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return fault.Invalidf("specification of %s is incomplete", t.id)
	}
	root := filepath.Join(t.bundle, "rootfs")
	if err := os.MkdirAll(root, 0o711); err != nil {
		return err
	}
	if len(o.Rootfs) > 0 {
		if err := mount.All(o.Rootfs, root); err != nil {
			return fmt.Errorf("mount root file system of %s: %w", t.id, err)
		}
	}
	if len(o.Rootfs) > 0 || !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = root
	}
	spec.Process.Terminal = o.IO.Terminal
	streams, fifos, err := streams(o.IO)
	if err != nil {
		return err
	}
	if err := t.save(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	started, pipes, err := t.r.keeper.Create(ctx, keeper.CreateRequest{
		ID: t.key, Spec: &spec, Streams: streams, Fifos: fifos, Systemd: systemd(o),
	})
	if err != nil {
		return err
	}
	t.pid = started.Pid
	if err := t.attach(pipes); err != nil {
		return errors.Join(err, t.r.keeper.Delete(context.WithoutCancel(ctx), keeper.Ref{ID: t.key}))
	}
	return nil
}

// systemd tells whether the client asks for systemd's cgroups, in the words of
// the runc shim, which clients know.
func systemd(o runtime.CreateOpts) bool {
	for _, any := range []typeurl.Any{o.TaskOptions, o.RuntimeOptions} {
		if any == nil || any.GetValue() == nil {
			continue
		}
		if v, err := typeurl.UnmarshalAny(any); err == nil {
			if runc, ok := v.(*options.Options); ok {
				return runc.SystemdCgroup
			}
		}
	}
	return false
}

func mounts(list []mount.Mount) (out []*types.Mount) {
	for _, m := range list {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

// Delete forgets a task that has ended or was never started.
func (r *Runtime) Delete(ctx context.Context, id string) (*runtime.Exit, error) {
	t, ok, err := r.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return r.shims.Delete(ctx, id)
	}
	exit, err := t.process.end(ctx)
	if err != nil {
		return nil, err
	}
	t.clear()
	r.publish(t.namespace, runtime.TaskDeleteEventTopic, &api.TaskDelete{
		ContainerID: id, Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: protobuf.ToTimestamp(exit.Timestamp),
	})
	return exit, nil
}

// clear removes what a task has outside the keeper.
func (t *task) clear() {
	for _, p := range t.processes() {
		p.pump.close()
	}
	root := filepath.Join(t.bundle, "rootfs")
	if err := mount.UnmountRecursive(root, 0); err != nil {
		t.r.log.Warn("root file system not unmounted", "task", t.key, "error", err)
	} else if err := os.RemoveAll(t.bundle); err != nil {
		t.r.log.Warn("bundle not removed", "task", t.key, "error", err)
	}
	t.r.mu.Lock()
	delete(t.r.tasks, t.key)
	t.r.mu.Unlock()
}

// hear passes exits on until Close.
func (r *Runtime) hear() {
	defer r.work.Done()
	for {
		select {
		case e, ok := <-r.keeper.Exits():
			if !ok {
				return
			}
			r.mu.Lock()
			t := r.tasks[e.ID]
			r.mu.Unlock()
			r.work.Add(1)
			go func() {
				defer r.work.Done()
				if t != nil {
					t.exited(e)
				}
				if err := r.keeper.Ack(r.ctx, e.Ref); err != nil && r.ctx.Err() == nil {
					r.log.Warn("exit not acknowledged", "task", e.ID, "error", err)
				}
			}()
		case <-r.ctx.Done():
			return
		}
	}
}

func (r *Runtime) publish(namespace, topic string, e events.Event) {
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	if err := r.events.Publish(ctx, topic, e); err != nil {
		r.log.Warn("event not published", "topic", topic, "error", err)
	}
}

// record is a task as the next daemon finds it.
type record struct {
	IO    runtime.IO            `json:"io"`
	Execs map[string]execRecord `json:"execs,omitempty"`
}

type execRecord struct {
	IO   runtime.IO     `json:"io"`
	Spec *specs.Process `json:"spec,omitempty"`
}

func (t *task) save() error {
	rec := record{IO: t.io, Execs: map[string]execRecord{}}
	for _, p := range t.processes() {
		if p.execID != "" {
			rec.Execs[p.execID] = execRecord{IO: p.io, Spec: p.spec}
		}
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	name := filepath.Join(t.bundle, "task.json")
	t.saving.Lock()
	defer t.saving.Unlock()
	if err := os.WriteFile(name+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// restore finds the tasks of an earlier daemon and clears away what the
// keeper does not know.
func (r *Runtime) restore(ctx context.Context) error {
	list, err := r.keeper.List(ctx)
	if err != nil {
		return err
	}
	known := map[keeper.Ref]keeper.Process{}
	for _, p := range list {
		known[p.Ref] = p
	}
	bundles, err := filepath.Glob(filepath.Join(r.dir, "*", "*"))
	if err != nil {
		return err
	}
	for _, bundle := range bundles {
		ns, id := filepath.Base(filepath.Dir(bundle)), filepath.Base(bundle)
		var rec record
		b, err := os.ReadFile(filepath.Join(bundle, "task.json"))
		if err == nil {
			err = json.Unmarshal(b, &rec)
		}
		t := newTask(r, ns, id, rec.IO)
		first, alive := known[keeper.Ref{ID: t.key}]
		if err != nil || !alive {
			t.clear()
			continue
		}
		t.found(ctx, first)
		t.paused = first.Status == "paused"
		for execID, e := range rec.Execs {
			p := newProcess(r, t, execID, e.IO)
			p.spec = e.Spec
			t.procs[execID] = p
			if k, started := known[keeper.Ref{ID: t.key, Exec: execID}]; started {
				p.found(ctx, k)
			}
		}
		r.tasks[t.key] = t
	}
	// A task without a bundle was being made when the daemon died.
	for ref := range known {
		if ref.Exec == "" && r.tasks[ref.ID] == nil {
			if err := r.keeper.Delete(ctx, ref); err != nil {
				r.log.Warn("half-made task not removed", "task", ref.ID, "error", err)
			}
		}
	}
	return nil
}
