package app

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/engine/containerd"
	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/engine/task"
)

// keeperPort is the keeper's client as engine/task wants it.
type keeperPort struct {
	c       *keeper.Client
	systemd bool // makes the cgroups
	exits   chan container.Exit
}

func newKeeperPort(c *keeper.Client, systemd bool) *keeperPort {
	p := &keeperPort{c: c, systemd: systemd, exits: make(chan container.Exit)}
	go func() {
		for e := range c.Exits() {
			p.exits <- exit(e)
		}
	}()
	return p
}

func exit(e keeper.Exit) container.Exit {
	return container.Exit{ContainerID: container.ID(e.ID), ExecID: e.Exec, Pid: e.Pid, Code: e.Code, Time: e.Time, OOMKilled: e.OOM, Unknown: e.Unknown}
}

func ref(id, exec string) keeper.Ref { return keeper.Ref{ID: id, Exec: exec} }

func pipes(p keeper.Pipes) container.Pipes {
	if p.TTY != nil {
		return container.Pipes{Stdin: p.TTY, Stdout: p.TTY}
	}
	return container.Pipes{Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr}
}

func (p *keeperPort) Create(ctx context.Context, id string, s *specs.Spec, w task.Streams) (task.Started, error) {
	st, files, err := p.c.Create(ctx, keeper.CreateRequest{ID: id, Spec: s, Streams: keeper.StreamSet(w), Systemd: p.systemd})
	return task.Started{Pid: st.Pid, StartTime: st.StartTime, Pipes: pipes(files), Cgroups: st.Cgroups}, err
}

func (p *keeperPort) Exec(ctx context.Context, id, exec string, s *specs.Process, w task.Streams) (task.Started, error) {
	st, files, err := p.c.Exec(ctx, keeper.ExecRequest{Ref: ref(id, exec), Process: s, Streams: keeper.StreamSet(w)})
	return task.Started{Pid: st.Pid, Pipes: pipes(files)}, err
}

func (p *keeperPort) Start(ctx context.Context, id string) error { return p.c.Start(ctx, id) }

func (p *keeperPort) Kill(ctx context.Context, id, exec string, signal int) error {
	return p.c.Kill(ctx, ref(id, exec), signal, false)
}

func (p *keeperPort) Resize(ctx context.Context, id, exec string, h, w uint16) error {
	return p.c.Resize(ctx, ref(id, exec), h, w)
}

func (p *keeperPort) CloseStdin(ctx context.Context, id, exec string) error {
	return p.c.CloseStdin(ctx, ref(id, exec))
}

func (p *keeperPort) Pause(ctx context.Context, id string) error  { return p.c.Pause(ctx, id) }
func (p *keeperPort) Resume(ctx context.Context, id string) error { return p.c.Resume(ctx, id) }

func (p *keeperPort) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	return p.c.Update(ctx, id, r)
}

func (p *keeperPort) Pids(ctx context.Context, id string) ([]int, error) { return p.c.Pids(ctx, id) }

func (p *keeperPort) Delete(ctx context.Context, id, exec string) error {
	return p.c.Delete(ctx, ref(id, exec))
}

func (p *keeperPort) Ack(ctx context.Context, id, exec string) error {
	return p.c.Ack(ctx, ref(id, exec))
}

func (p *keeperPort) Pipes(ctx context.Context, id, exec string) (container.Pipes, error) {
	files, err := p.c.Pipes(ctx, ref(id, exec))
	return pipes(files), err
}

func (p *keeperPort) Exits() <-chan container.Exit { return p.exits }

func (p *keeperPort) List(ctx context.Context) ([]task.Process, error) {
	all, err := p.c.List(ctx)
	var list []task.Process
	for _, x := range all {
		one := task.Process{Task: container.Task{ID: container.ID(x.ID), Pid: x.Pid, Status: container.Status(x.Status)}, StartTime: x.StartTime, ExecID: x.Exec, Cgroups: x.Cgroups}
		if x.Exit != nil {
			one.Exit = exit(*x.Exit)
		}
		list = append(list, one)
	}
	return list, err
}

// committer makes images of containers with the image library.
type committer struct{ l *containerd.Library }

func (c committer) Commit(ctx context.Context, x container.Container, o container.CommitOptions, config container.ImageConfig) (string, error) {
	return c.l.Commit(ctx, image.CommitInput{
		ContainerID: x.ID, ParentID: x.ImageID, Config: config, Comment: o.Comment, Author: o.Author, Reference: o.Reference, ContainerName: x.Name, Changes: o.Changes,
	})
}
