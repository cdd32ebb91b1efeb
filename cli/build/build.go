// Package build is the command `berth build`: BuildKit's client inside the
// program, with no plugin. It gathers what a person asks for, sends it to the
// daemon's builder, and shows how it goes.
package build

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/locale"
)

var say = locale.Say

// options are the flags of one build, as docker build names them.
type options struct {
	tags, args, labels, contexts, hosts, ulimits       []string
	secrets, ssh, outputs, cacheFrom, cacheTo          []string
	allow, attests, noCacheFilter                      []string
	file, target, network, shmSize, cgroupParent       string
	platforms                                          []string
	progress, iidFile, metadataFile, provenance, sbom  string
	noCache, pull, quiet, push, load, check, shell, rm bool
}

// New gives the command.
func New(docker command.Cli) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] PATH | URL | -",
		Short: say("Build an image from a Dockerfile", "Construye una imagen a partir de un Dockerfile"),
		Example: `  berth build -t web .
  berth build --target test --build-arg VERSION=2 .
  berth build -o out .                        # files instead of an image
  berth build --secret id=token,src=tok .
  berth build --shell-on-failure .            # look around in the step that failed
  berth build -t web https://example.org/repo.git#main:web`,
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), docker, o, args[0]) },
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.tags, "tag", "t", nil, "Name of the image, name:tag")
	f.StringVarP(&o.file, "file", "f", "", "Path of the Dockerfile (default PATH/Dockerfile); - reads it from stdin")
	f.StringArrayVar(&o.args, "build-arg", nil, "Value of an ARG, name=value; without a value the environment's")
	f.StringArrayVar(&o.labels, "label", nil, "Label of the image, key=value")
	f.StringArrayVar(&o.contexts, "build-context", nil, "Further context, name=path, URL, docker-image://… or target:…")
	f.StringVar(&o.target, "target", "", "Stage to build")
	f.StringSliceVar(&o.platforms, "platform", nil, "Platforms to build for, linux/amd64,…")
	f.BoolVar(&o.noCache, "no-cache", false, "Use nothing of the cache")
	f.StringSliceVar(&o.noCacheFilter, "no-cache-filter", nil, "Stages that use nothing of the cache")
	f.BoolVar(&o.pull, "pull", false, "Ask registries for newer base images")
	f.StringVar(&o.network, "network", "", "Network of RUN: default, none, host")
	f.StringSliceVar(&o.hosts, "add-host", nil, "Further line of /etc/hosts, name:address")
	f.StringVar(&o.shmSize, "shm-size", "", "Size of /dev/shm, 64m")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "Limit of processes, name=soft[:hard]")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "Parent cgroup of steps")
	f.StringArrayVar(&o.secrets, "secret", nil, "Secret for RUN, id=name[,src=file|env=VARIABLE]")
	f.StringArrayVar(&o.ssh, "ssh", nil, "SSH agent or keys for RUN, default|id[=socket|key]")
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "Where the result goes: a folder, - (tar), or type=image|oci|docker|tar|local,dest=…")
	f.StringArrayVar(&o.cacheFrom, "cache-from", nil, "Cache to read, type=registry|local,…")
	f.StringArrayVar(&o.cacheTo, "cache-to", nil, "Cache to write, type=inline|registry|local,…")
	f.StringSliceVar(&o.allow, "allow", nil, "Allow network.host or security.insecure")
	f.StringArrayVar(&o.attests, "attest", nil, "Attestation, type=provenance|sbom,…")
	f.StringVar(&o.provenance, "provenance", "", "Provenance attestation: false, min or max")
	f.StringVar(&o.sbom, "sbom", "", "SBOM attestation")
	f.BoolVar(&o.push, "push", false, "Push the image to its registry")
	f.BoolVar(&o.load, "load", false, "Store the image in the engine (the default)")
	f.BoolVar(&o.check, "check", false, "Look for mistakes in the Dockerfile and build nothing")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print the image's id alone")
	f.StringVar(&o.progress, "progress", os.Getenv("BUILDKIT_PROGRESS"), "How progress is shown: auto, plain, tty, rawjson, quiet")
	f.StringVar(&o.iidFile, "iidfile", "", "File for the image's id")
	f.StringVar(&o.metadataFile, "metadata-file", "", "File for what the build tells of its result")
	f.BoolVar(&o.shell, "shell-on-failure", false, say("Open a shell in the step that fails, with its mounts", "Abre un intérprete en el paso que falla, con sus montajes"))
	f.BoolVar(&o.rm, "rm", true, "Has no meaning: nothing is left behind")
	f.BoolVar(&o.rm, "force-rm", true, "Has no meaning: nothing is left behind")
	_ = f.MarkHidden("rm")
	_ = f.MarkHidden("force-rm")
	return cmd
}

func run(ctx context.Context, docker command.Cli, o options, where string) error {
	c, err := client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return docker.Client().DialHijack(ctx, "/grpc", "h2c", nil)
	}), client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		return docker.Client().DialHijack(ctx, "/session", proto, meta)
	}))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := docker.Client().Ping(ctx, pingOptions); err != nil {
		return err // it says how to start the daemon
	}
	so, cleanup, err := o.solve(docker, where)
	if err != nil {
		return err
	}
	defer cleanup()
	resp, err := o.watch(ctx, docker, func(ctx context.Context, ch chan *client.SolveStatus) (*client.SolveResponse, error) {
		if !o.shell && !o.check {
			return c.Solve(ctx, nil, so, ch)
		}
		return o.through(ctx, docker, c, so, ch)
	})
	var status cli.StatusError
	switch {
	case errors.As(err, &status):
		return err
	case err != nil:
		for _, s := range errdefs.Sources(err) {
			_ = s.Print(docker.Err()) // file, line and caret
		}
		return fmt.Errorf("build failed: %w", err)
	case o.check:
		return nil
	}
	return o.report(docker, resp.ExporterResponse)
}

// watch shows the progress of a build.
func (o options) watch(ctx context.Context, docker command.Cli, build func(context.Context, chan *client.SolveStatus) (*client.SolveResponse, error)) (*client.SolveResponse, error) {
	mode := progressui.DisplayMode(o.progress)
	switch {
	case o.quiet || o.check:
		mode = progressui.QuietMode
	case o.shell && (mode == progressui.AutoMode || mode == progressui.DefaultMode):
		mode = progressui.PlainMode // the shell has the terminal
	}
	d, err := progressui.NewDisplay(docker.Err(), mode)
	if err != nil {
		return nil, err
	}
	ch := make(chan *client.SolveStatus)
	shown := make(chan error, 1)
	go func() {
		_, err := d.UpdateFrom(context.WithoutCancel(ctx), ch)
		shown <- err
	}()
	resp, err := build(ctx, ch)
	return resp, errors.Join(err, <-shown)
}

// through runs the build under our own eyes: its result, or the step that
// failed, can be looked at while the builder still has it.
func (o options) through(ctx context.Context, docker command.Cli, c *client.Client, so client.SolveOpt, ch chan *client.SolveStatus) (*client.SolveResponse, error) {
	req := gateway.SolveRequest{Frontend: so.Frontend, FrontendOpt: so.FrontendAttrs, Evaluate: !o.check}
	for _, i := range so.CacheImports {
		req.CacheImports = append(req.CacheImports, gateway.CacheOptionsEntry{Type: i.Type, Attrs: i.Attrs})
	}
	so.Frontend, so.CacheImports = "", nil
	if o.check {
		req.FrontendOpt["requestid"] = "frontend.lint"
		so.Exports = nil
	}
	return c.Build(ctx, so, "berth", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		res, err := g.Solve(ctx, req)
		if err != nil && o.shell {
			if opened := shell(ctx, docker, g, err); opened != nil {
				fmt.Fprintln(docker.Err(), opened)
			}
		}
		if err == nil && o.check {
			_, _ = docker.Out().Write(res.Metadata["result.txt"])
			if code := string(res.Metadata["result.statuscode"]); code != "" && code != "0" {
				return nil, cli.StatusError{StatusCode: 1}
			}
			return gateway.NewResult(), nil
		}
		return res, err
	}, ch)
}
