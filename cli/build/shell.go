package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/docker/cli/cli/command"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/term"
)

// shell opens one in the step that failed: its root and mounts as they were
// when it ended, its environment, user and working directory.
func shell(ctx context.Context, docker command.Cli, g gateway.Client, failed error) error {
	var solve *errdefs.SolveError
	if !errors.As(failed, &solve) {
		return fmt.Errorf("no shell: the build failed before any step")
	}
	run, ok := solve.Op.GetOp().(*pb.Op_Exec)
	if !ok {
		return fmt.Errorf("no shell: what failed is no RUN")
	}
	req := gateway.NewContainerRequest{NetMode: run.Exec.Network, Platform: solve.Op.Platform, Constraints: solve.Op.Constraints}
	if m := run.Exec.Meta; m != nil {
		req.Hostname, req.ExtraHosts = m.Hostname, m.ExtraHosts
	}
	for i, m := range run.Exec.Mounts {
		one := gateway.Mount{Selector: m.Selector, Dest: m.Dest, Readonly: m.Readonly, MountType: m.MountType, CacheOpt: m.CacheOpt, SecretOpt: m.SecretOpt, SSHOpt: m.SSHOpt}
		if i < len(solve.MountIDs) {
			one.ResultID = solve.MountIDs[i]
		}
		req.Mounts = append(req.Mounts, one)
	}
	c, err := g.NewContainer(ctx, req)
	if err != nil {
		return fmt.Errorf("shell: %w", err)
	}
	defer func() { _ = c.Release(context.WithoutCancel(ctx)) }()
	meta := run.Exec.Meta
	fmt.Fprintf(docker.Err(), "%s\n", say("This is the step that failed. Its command was:", "Este es el paso que falló. Su orden era:"))
	fmt.Fprintf(docker.Err(), "  %q\n", meta.Args)
	in, out := docker.In(), docker.Out()
	tty := in.IsTerminal() && out.IsTerminal()
	start := gateway.StartRequest{
		Args: []string{"/bin/sh"}, Env: meta.Env, User: meta.User, Cwd: meta.Cwd, Tty: tty, SecretEnv: run.Exec.Secretenv, SecurityMode: run.Exec.Security,
		Stdin: io.NopCloser(in), Stdout: open{out}, Stderr: open{docker.Err()},
	}
	if tty {
		if err := in.SetRawTerminal(); err != nil {
			return err
		}
		defer in.RestoreTerminal()
	}
	p, err := c.Start(ctx, start)
	if err != nil {
		return fmt.Errorf("shell: %w", err)
	}
	if tty {
		if size, err := term.GetWinsize(os.Stdout.Fd()); err == nil {
			_ = p.Resize(ctx, gateway.WinSize{Rows: uint32(size.Height), Cols: uint32(size.Width)})
		}
	}
	var status interface{ ExitStatus() uint32 }
	if err := p.Wait(); err != nil && !errors.As(err, &status) && ctx.Err() != nil {
		return err
	}
	return nil
}

// open is a stream that stays open after the shell.
type open struct{ io.Writer }

func (open) Close() error { return nil }
