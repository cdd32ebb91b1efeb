package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	containerdoci "github.com/containerd/containerd/v2/pkg/oci"
	continuity "github.com/containerd/continuity/fs"
	bk "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources/types"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/lib/fault"
)

// executor runs the steps of builds as containers of the keeper.
type executor struct {
	o     Options
	dir   string // one folder a step: its root and its files
	limit limits

	exits sync.WaitGroup

	mu      sync.Mutex
	waiting map[key]chan Exit
	steps   map[string]*step
	slices  map[string]bool // parents that clients have asked for
}

// mountsDir is where BuildKit mounts what steps share, below the run folder.
const mountsDir = "mounts"

// key names a process.
type key struct{ id, exec string }

// step is one that runs.
type step struct {
	spec  *specs.Spec
	root  string
	ready chan struct{} // closed when it runs, or never will
	execs int
}

// newExecutor ends what an earlier daemon's builds have left: their processes,
// networks and mounts.
func newExecutor(ctx context.Context, o Options) (*executor, error) {
	x := &executor{o: o, dir: filepath.Join(o.Run, "steps"), limit: hostLimits(), waiting: map[key]chan Exit{}, steps: map[string]*step{}, slices: map[string]bool{}}
	left, err := o.Runner.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range left {
		if err := errors.Join(o.Runner.Delete(ctx, id, ""), o.Networks.Close(ctx, id)); err != nil {
			o.Logger.Warn("step of an earlier daemon not removed", "step", id, "error", err)
		}
	}
	if err := sweep(o.Run); err != nil {
		return nil, err
	}
	for _, dir := range []string{x.dir, filepath.Join(o.Run, mountsDir)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	x.exits.Add(1)
	go x.watch()
	return x, nil
}

// sweep takes away mounts and folders below dir.
func sweep(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	slices.Reverse(mounts)
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return os.RemoveAll(dir)
}

func (x *executor) close() {
	if err := x.o.Runner.Close(); err != nil {
		x.o.Logger.Warn("runner of steps", "error", err)
	}
	x.exits.Wait()
}

// watch hands exits to who waits for them.
func (x *executor) watch() {
	defer x.exits.Done()
	for e := range x.o.Runner.Exits() {
		x.mu.Lock()
		c := x.waiting[key{e.ID, e.Exec}]
		delete(x.waiting, key{e.ID, e.Exec})
		x.mu.Unlock()
		if c != nil {
			c <- e
		}
	}
}

func (x *executor) await(k key) <-chan Exit {
	c := make(chan Exit, 1)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.waiting[k] = c
	return c
}

func (x *executor) forget(k key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.waiting, k)
}

// Run runs one step to its end.
func (x *executor) Run(ctx context.Context, id string, root bk.Mount, mounts []bk.Mount, p bk.ProcessInfo, started chan<- struct{}) (_ types.Recorder, err error) {
	if id == "" {
		id = identity.NewID()
	}
	if err := bk.ValidContainerID(id); err != nil {
		return nil, err
	}
	s := &step{ready: make(chan struct{})}
	x.mu.Lock()
	if x.steps[id] != nil {
		x.mu.Unlock()
		return nil, fmt.Errorf("container %s exists", id)
	}
	x.steps[id] = s
	x.mu.Unlock()
	var once sync.Once
	tell := func() {
		once.Do(func() {
			close(s.ready)
			if started != nil {
				close(started)
			}
		})
	}
	defer func() {
		x.mu.Lock()
		delete(x.steps, id)
		x.mu.Unlock()
		tell()
	}()
	done, err := x.prepare(ctx, id, s, root, mounts, p.Meta)
	if err != nil {
		return nil, err
	}
	defer func() {
		if left := done(); left != nil {
			x.o.Logger.Error("step not wholly removed", "step", id, "error", left)
			if err == nil {
				err = left
			}
		}
	}()
	return nil, foreign(x.first(ctx, id, s, p, tell), s.root, p.Meta)
}

// undo is a stack of what ends with a step.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

func (u undo) run() error {
	var errs []error
	for _, f := range slices.Backward(u) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// prepare makes the root, the files, the network and the specification of a step.
func (x *executor) prepare(ctx context.Context, id string, s *step, root bk.Mount, mounts []bk.Mount, meta bk.Meta) (_ func() error, err error) {
	var u undo
	defer func() {
		if err != nil {
			err = errors.Join(err, u.run())
		}
	}()
	mode, err := networkMode(meta)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(x.dir, id)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	u.add(func() error { return os.RemoveAll(dir) })
	if s.root, err = x.mountRoot(ctx, dir, root, &u); err != nil {
		return nil, err
	}
	stubs := bk.MountStubsCleaner(context.WithoutCancel(ctx), s.root, mounts, meta.RemoveMountStubsRecursive)
	u.add(func() error { stubs(); return nil })
	var hosts []string
	for _, h := range meta.ExtraHosts {
		hosts = append(hosts, h.Host+"="+h.IP.String())
	}
	hostname := meta.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	net, err := x.o.Networks.Open(ctx, id, mode, hostname, hosts)
	if err != nil {
		return nil, fmt.Errorf("network of the step: %w", err)
	}
	u.add(func() error { return x.o.Networks.Close(context.WithoutCancel(ctx), id) })
	for name, text := range map[string][]byte{"hosts": net.Hosts, "resolv.conf": net.Resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return nil, err
		}
	}
	uid, gid, groups, err := oci.GetUser(s.root, meta.User)
	if err != nil {
		return nil, err
	}
	opts := []containerdoci.SpecOpts{oci.WithUIDGID(uid, gid, groups)}
	if meta.ReadonlyRootFS {
		opts = append(opts, containerdoci.WithRootFSReadonly())
	}
	profile := ""
	if x.o.Profile != nil && meta.SecurityMode == pb.SecurityMode_SANDBOX {
		if profile, err = x.o.Profile(); err != nil {
			return nil, err
		}
	}
	spec, cleanup, err := oci.GenerateSpec(ctx, meta, mounts, id, filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts"), place{net.NetNS}, x.o.CgroupParent, oci.ProcessSandbox, nil, profile, false, "", nil, opts...)
	if err != nil {
		return nil, err
	}
	u.add(func() error { cleanup(); return nil })
	parent, err := x.parent(meta.CgroupParent, &u)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(parent, ":") {
		spec.Linux.CgroupsPath = filepath.Join("/", parent, id)
	}
	spec.Root.Path = s.root
	spec.Root.Readonly = spec.Root.Readonly || root.Readonly
	spec.Process.Terminal = meta.Tty
	x.limit.clamp(spec)
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	pids := int64(stepPids)
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	s.spec = spec
	return u.run, workdir(s.root, meta.Cwd, int(uid), int(gid))
}

// parent is the parent cgroup of a step that asks for one. The image of a
// frontend may ask as well as a client: it gets a folder below the engine's own,
// or under systemd, where slices are the host's, one that a client has named.
func (x *executor) parent(asked string, u *undo) (string, error) {
	own := x.o.CgroupParent
	switch {
	case asked == "":
		return own, nil
	case !parentName.MatchString(asked):
		return "", fault.Invalidf("cgroup-parent %q is not valid: use names of letters, digits, _ . @ -, joined by /", asked)
	case !strings.HasSuffix(own, ":"):
		u.add(leaveCgroup(own, asked))
		return filepath.Join("/", own, asked), nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.slices[asked] {
		return "", fault.Forbiddenf("a frontend asks for the cgroup-parent %q: it may use a slice that the build names itself (--cgroup-parent %s)", asked, asked)
	}
	return asked, nil
}

// maxSlices bounds the slices that clients of this daemon have named.
const maxSlices = 1000

// allow notes that a client wants a parent cgroup for its steps.
func (x *executor) allow(parent string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.slices) < maxSlices {
		x.slices[parent] = true
	}
}

// defaultHostname is buildkitd's.
const defaultHostname = "buildkitsandbox"

func networkMode(meta bk.Meta) (string, error) {
	if meta.Proxy != nil {
		return "", errors.New("proxied networks of steps are not supported by Berth")
	}
	if len(meta.CDIDevices) > 0 {
		return "", errors.New("CDI devices in steps are not supported by Berth")
	}
	switch meta.NetMode {
	case pb.NetMode_UNSET:
		return "bridge", nil
	case pb.NetMode_HOST:
		return "host", nil
	case pb.NetMode_NONE:
		return "none", nil
	}
	return "", fmt.Errorf("unknown network mode %s", meta.NetMode)
}

func (x *executor) mountRoot(ctx context.Context, dir string, root bk.Mount, u *undo) (string, error) {
	m, err := root.Src.Mount(ctx, false)
	if err != nil {
		return "", err
	}
	mounts, release, err := m.Mount()
	if err != nil {
		return "", err
	}
	if release != nil {
		u.add(release)
	}
	at := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", err
	}
	if err := mount.All(mounts, at); err != nil {
		return "", fmt.Errorf("mount root: %w", err)
	}
	// Detached where somebody on the host still looks into it: what is removed
	// next must not be the files in the mount.
	u.add(func() error { return unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	return at, nil
}

// workdir makes the working directory of a step where it is not there.
func workdir(root, cwd string, uid, gid int) error {
	at, err := continuity.RootPath(root, cwd)
	if err != nil {
		return fmt.Errorf("working dir %s points to invalid target: %w", cwd, err)
	}
	if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return user.MkdirAllAndChown(at, 0o755, uid, gid)
}

// first runs a step's first process.
func (x *executor) first(ctx context.Context, id string, s *step, p bk.ProcessInfo, started func()) error {
	k := key{id: id}
	exit := x.await(k)
	defer x.forget(k)
	pipes, err := x.o.Runner.Create(ctx, id, s.spec, streams(p))
	if err != nil {
		return fmt.Errorf("start step: %w", err)
	}
	defer func() {
		if err := x.o.Runner.Delete(context.WithoutCancel(ctx), id, ""); err != nil {
			x.o.Logger.Error("step not deleted", "step", id, "error", err)
		}
	}()
	flow := x.connect(k, p, pipes)
	if err := x.o.Runner.Start(ctx, id); err != nil {
		flow.abort()
		return fmt.Errorf("start step: %w", err)
	}
	started()
	return x.wait(ctx, k, p, flow, exit)
}

// Exec runs a further process in a step that runs.
func (x *executor) Exec(ctx context.Context, id string, p bk.ProcessInfo) error {
	x.mu.Lock()
	s := x.steps[id]
	x.mu.Unlock()
	if s == nil {
		return fmt.Errorf("container %s not found", id)
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	x.mu.Lock()
	alive := x.steps[id] == s
	s.execs++
	k := key{id, fmt.Sprintf("exec%d", s.execs)}
	x.mu.Unlock()
	if !alive {
		return fmt.Errorf("container %s has stopped", id)
	}
	process := *s.spec.Process
	process.Terminal, process.Args = p.Meta.Tty, p.Meta.Args
	if p.Meta.Cwd != "" {
		process.Cwd = p.Meta.Cwd
	}
	if len(p.Meta.Env) > 0 {
		process.Env = p.Meta.Env
	}
	if p.Meta.User != "" {
		uid, gid, groups, err := oci.GetUser(s.root, p.Meta.User)
		if err != nil {
			return err
		}
		process.User = specs.User{UID: uid, GID: gid, AdditionalGids: groups}
	}
	exit := x.await(k)
	defer x.forget(k)
	pipes, err := x.o.Runner.Exec(ctx, id, k.exec, &process, streams(p))
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	err = x.wait(ctx, k, p, x.connect(k, p, pipes), exit)
	if left := x.o.Runner.Delete(context.WithoutCancel(ctx), id, k.exec); left != nil {
		x.o.Logger.Debug("exec not deleted", "step", id, "error", left) // it went with its step
	}
	return err
}

// killPause is the time between two tries to end a cancelled process.
const killPause = 100 * time.Millisecond

// wait returns when a process and its output have ended. The end of ctx ends
// the process.
func (x *executor) wait(ctx context.Context, k key, p bk.ProcessInfo, f *flow, exit <-chan Exit) error {
	cancelled := ctx.Done()
	var again <-chan time.Time
	kill := func() {
		if err := x.o.Runner.Kill(context.WithoutCancel(ctx), k.id, k.exec, int(unix.SIGKILL)); err != nil {
			x.o.Logger.Debug("cancelled process not killed", "step", k.id, "error", err)
		}
		again = time.After(killPause)
	}
	for {
		select {
		case e := <-exit:
			f.finish()
			return exitError(ctx, e, p.Meta.ValidExitCodes)
		case <-cancelled:
			cancelled = nil
			kill()
		case <-again:
			kill()
		case size, ok := <-p.Resize:
			if !ok {
				p.Resize = nil
				continue
			}
			if err := x.o.Runner.Resize(ctx, k.id, k.exec, uint16(size.Rows), uint16(size.Cols)); err != nil {
				x.o.Logger.Debug("terminal not resized", "step", k.id, "error", err)
			}
		case sig, ok := <-p.Signal:
			if !ok {
				p.Signal = nil
				continue
			}
			if err := x.o.Runner.Kill(ctx, k.id, k.exec, int(sig)); err != nil {
				x.o.Logger.Debug("signal not delivered", "step", k.id, "error", err)
			}
		}
	}
}

func exitError(ctx context.Context, e Exit, valid []int) error {
	good := e.Code == 0
	if valid != nil {
		good = slices.Contains(valid, e.Code)
	}
	if good && ctx.Err() == nil {
		return nil
	}
	out := &gateway.ExitError{ExitCode: uint32(e.Code)}
	switch {
	case ctx.Err() != nil:
		out.Err = fmt.Errorf("%s: %w", out.Error(), context.Cause(ctx))
	case e.OOM:
		out.Err = fmt.Errorf("exit code: %d: the process ran out of memory and was killed", e.Code)
	}
	return out
}
