package app

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/app/scanner"
	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/engine/buildkit"
	"github.com/berth-project/berth/engine/containerd"
	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/engine/task"
	"github.com/berth-project/berth/lib/fault"
)

// newBuilder joins the builder with the keeper, the networks and the images.
// Its steps have a realm of their own in the keeper.
func (d *daemon) newBuilder(ctx context.Context, binary, snapshotter string, runtime *task.Runtime) (*buildkit.Builder, error) {
	c := d.c
	steps, err := keeper.Connect(ctx, keeper.Options{Dir: filepath.Join(c.ExecRoot, "keeper"), Binary: binary, Cgroup: c.keeperCgroup(), Realm: "build", Logger: d.log})
	if err != nil {
		return nil, err
	}
	return buildkit.New(ctx, buildkit.Options{
		Root: filepath.Join(c.DataRoot, "build"), Run: filepath.Join(c.ExecRoot, "build"), Containerd: d.engine.Client(), Namespace: containerd.Namespace, Snapshotter: snapshotter, Applier: d.engine.Applier(),
		Images: d.images, Networks: buildNetworks{d.networks}, Runner: newStepRunner(steps, d.cgroups == driverSystemd), Hosts: d.images.Hosts(), CgroupParent: c.stepParent(d.cgroups), Profile: runtime.DefaultProfile,
		Scanner: scanner.New(d.images).Image, Gateway: d.networks.HostGateway(), Logger: d.log,
	})
}

// buildNetworks are the engine's networks as the builder wants them.
type buildNetworks struct{ s *network.Service }

func (n buildNetworks) Open(ctx context.Context, id, mode, hostname string, hosts []string) (buildkit.Sandbox, error) {
	s, err := n.s.Open(ctx, container.Container{ID: container.ID(id), Spec: container.Spec{Hostname: hostname, NetworkMode: mode, ExtraHosts: hosts}})
	return buildkit.Sandbox{NetNS: s.NetNS, Hosts: s.Hosts, Resolv: s.Resolv}, err
}

func (n buildNetworks) Close(ctx context.Context, id string) error {
	return n.s.Close(ctx, container.Container{ID: container.ID(id)})
}

// stepRunner is the keeper's client as the builder wants it.
type stepRunner struct {
	c       *keeper.Client
	systemd bool // makes the cgroups
	exits   chan buildkit.Exit
}

func newStepRunner(c *keeper.Client, systemd bool) *stepRunner {
	r := &stepRunner{c: c, systemd: systemd, exits: make(chan buildkit.Exit)}
	go func() {
		defer close(r.exits)
		for e := range c.Exits() {
			r.exits <- buildkit.Exit{ID: e.ID, Exec: e.Exec, Code: e.Code, OOM: e.OOM, Time: e.Time}
			// A step that nobody waits for has ended with its daemon.
			_ = c.Ack(context.Background(), e.Ref)
		}
	}()
	return r
}

func stepPipes(p keeper.Pipes) buildkit.Pipes {
	if p.TTY != nil {
		return buildkit.Pipes{Stdin: p.TTY, Stdout: p.TTY}
	}
	return buildkit.Pipes{Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr}
}

func (r *stepRunner) Create(ctx context.Context, id string, s *specs.Spec, w buildkit.Streams) (buildkit.Pipes, error) {
	if r.systemd {
		// A parent that the client has named comes as a folder.
		if slice, rest, ok := strings.Cut(strings.TrimPrefix(s.Linux.CgroupsPath, "/"), "/"); ok {
			if !strings.HasSuffix(slice, ".slice") || rest != id {
				return buildkit.Pipes{}, fault.Invalidf("cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"")
			}
			s.Linux.CgroupsPath = slice + ":berth-build:" + id
		}
	}
	_, p, err := r.c.Create(ctx, keeper.CreateRequest{ID: id, Spec: s, Streams: keeper.StreamSet(w), Systemd: r.systemd})
	return stepPipes(p), err
}

func (r *stepRunner) Exec(ctx context.Context, id, exec string, s *specs.Process, w buildkit.Streams) (buildkit.Pipes, error) {
	_, p, err := r.c.Exec(ctx, keeper.ExecRequest{Ref: ref(id, exec), Process: s, Streams: keeper.StreamSet(w)})
	return stepPipes(p), err
}

func (r *stepRunner) Start(ctx context.Context, id string) error { return r.c.Start(ctx, id) }

func (r *stepRunner) Kill(ctx context.Context, id, exec string, signal int) error {
	return r.c.Kill(ctx, ref(id, exec), signal, false)
}

func (r *stepRunner) Resize(ctx context.Context, id, exec string, height, width uint16) error {
	return r.c.Resize(ctx, ref(id, exec), height, width)
}

func (r *stepRunner) CloseStdin(ctx context.Context, id, exec string) error {
	return r.c.CloseStdin(ctx, ref(id, exec))
}

func (r *stepRunner) Delete(ctx context.Context, id, exec string) error {
	return r.c.Delete(ctx, ref(id, exec))
}

func (r *stepRunner) List(ctx context.Context) ([]string, error) {
	all, err := r.c.List(ctx)
	var ids []string
	for _, p := range all {
		if p.Exec == "" {
			ids = append(ids, p.ID)
		}
	}
	return ids, err
}

func (r *stepRunner) Exits() <-chan buildkit.Exit { return r.exits }
func (r *stepRunner) Close() error                { return r.c.Close() }
