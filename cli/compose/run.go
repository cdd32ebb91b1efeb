package compose

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	composeformat "github.com/compose-spec/compose-go/v2/format"
	"github.com/compose-spec/compose-go/v2/types"
	dockercontainer "github.com/docker/cli/cli/command/container"
	"github.com/docker/cli/opts"
	"github.com/mattn/go-shellwords"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/format/compose"
)

type runOptions struct {
	makeOptions
	detach, autoRemove           bool
	env, envFiles, labels        []string
	noTTY, tty, interactive      bool
	name, user, workdir          string
	entrypoint                   string
	hasEntrypoint                bool
	capAdd, capDrop              opts.ListOpts
	volumes, publish             []string
	aliases, servicePorts, quiet bool
}

func (t *tool) runCommand() *cobra.Command {
	o := runOptions{capAdd: opts.NewListOpts(nil), capDrop: opts.NewListOpts(nil)}
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] SERVICE [COMMAND] [ARGS...]",
		Short: say("Run a one-off command on a service", "Ejecuta una orden suelta en un contenedor nuevo de un servicio"),
		Example: `  berth compose run --rm web sh
  berth compose run --rm -T db pg_dump -h db shop > shop.sql
  berth compose run -d --service-ports web`,
		Args: cobra.MinimumNArgs(1),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			if len(o.publish) > 0 && o.servicePorts {
				return errors.New("--service-ports and --publish are incompatible")
			}
			switch {
			case f.Changed("tty") && f.Changed("no-tty"):
				return errors.New("--tty and --no-tty can't be used together")
			case f.Changed("tty"):
				o.noTTY = !o.tty
			case !f.Changed("no-tty") && !f.Changed("interactive") && !t.docker.In().IsTerminal():
				o.noTTY = true
			}
			o.hasEntrypoint = f.Changed("entrypoint")
			if o.quiet {
				t.screen = quiet{}
			}
			return o.check()
		},
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error { return t.runOneOff(ctx, cmd, &o, args[0], args[1:]) })
	f := cmd.Flags()
	f.BoolVarP(&o.detach, "detach", "d", false, "Run container in background and print container ID")
	f.StringArrayVarP(&o.env, "env", "e", nil, "Set environment variables")
	f.StringArrayVar(&o.envFiles, "env-from-file", nil, "Set environment variables from file")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "Add or override a label")
	f.BoolVar(&o.autoRemove, "rm", false, "Automatically remove the container when it exits")
	f.BoolVarP(&o.noTTY, "no-tty", "T", !t.docker.Out().IsTerminal(), "Disable pseudo-TTY allocation (default: auto-detected)")
	f.StringVar(&o.name, "name", "", "Assign a name to the container")
	f.StringVarP(&o.user, "user", "u", "", "Run as specified username or uid")
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	f.StringVar(&o.entrypoint, "entrypoint", "", "Override the entrypoint of the image")
	f.Var(&o.capAdd, "cap-add", "Add Linux capabilities")
	f.Var(&o.capDrop, "cap-drop", "Drop Linux capabilities")
	f.BoolVar(&o.noDeps, "no-deps", false, "Don't start linked services")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "Bind mount a volume")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "Publish a container's port(s) to the host")
	f.BoolVar(&o.aliases, "use-aliases", false, "Use the service's network useAliases in the network(s) the container connects to")
	f.BoolVarP(&o.servicePorts, "service-ports", "P", false, "Run command with all service's ports enabled and mapped to the host")
	f.StringVar(&o.pull, "pull", "policy", `Pull image before running ("always"|"missing"|"never")`)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Don't print anything to STDOUT")
	f.BoolVar(&o.quietBuild, "quiet-build", false, "Suppress progress output from the build process")
	f.BoolVar(&t.quietPull, "quiet-pull", false, "Pull without printing progress information")
	f.BoolVar(&o.build, "build", false, "Build image before starting container")
	f.BoolVar(&o.removeOrphans, "remove-orphans", false, "Remove containers for services not defined in the Compose file")
	f.BoolVarP(&o.interactive, "interactive", "i", true, "Keep STDIN open even if not attached")
	f.BoolVarP(&o.tty, "tty", "t", true, "Allocate a pseudo-TTY")
	hide(f, "tty")
	f.SetNormalizeFunc(renames(map[string]string{"volumes": "volume", "labels": "label", "no-TTY": "no-tty"}))
	f.SetInterspersed(false)
	return cmd
}

func (t *tool) runOneOff(ctx context.Context, cmd *cobra.Command, o *runOptions, service string, command []string) error {
	a, err := t.load(ctx, []string{service})
	if err != nil {
		return err
	}
	s, ok := a.Project.Services[service]
	if !ok {
		return compose.NoService(service, a.Project.ServiceNames())
	}
	if err := o.change(&s, a.Project, command); err != nil {
		return err
	}
	a.Project.Services[service] = s
	labels := map[string]string{}
	for _, l := range o.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok {
			return errors.New("label must be set as KEY=VALUE")
		}
		labels[key] = value
	}
	d, err := app.NewDocument(a)
	if err != nil {
		return err
	}
	p, err := o.policy(t, cmd, a, nil)
	if err != nil {
		return err
	}
	if err := t.buildFirst(ctx, &o.makeOptions, a, []string{service}, &p); err != nil {
		return err
	}
	r := app.RunRequest{
		Document: d, Auth: t.auths(a), Service: service, Name: o.name, AutoRemove: o.autoRemove, Interactive: o.interactive && !o.detach,
		TTY: !o.noTTY, Ports: o.servicePorts || len(o.publish) > 0, Aliases: o.aliases, Labels: labels, Policy: p,
	}
	if t.dryRun {
		t.screen.on(event{id: "Container " + d.Name + "-" + service + "-run", state: done, text: "Created"})
		return nil
	}
	result, err := t.do(ctx, "run", func(ctx context.Context, w remote.Watch) (app.Result, error) { return t.remote().Run(ctx, r, w) })
	if err != nil {
		return err
	}
	if o.detach {
		if _, err := t.docker.Client().ContainerStart(ctx, result.Container, client.ContainerStartOptions{}); err != nil {
			return err
		}
		full, err := t.docker.Client().ContainerInspect(ctx, result.Container, client.ContainerInspectOptions{})
		if err != nil {
			return err
		}
		fmt.Fprintln(t.docker.Out(), strings.TrimPrefix(full.Container.Name, "/"))
		return nil
	}
	// A signal is the program's: what it does with it is its own affair.
	return exitStatus(dockercontainer.RunStart(context.WithoutCancel(ctx), t.docker, &dockercontainer.StartOptions{
		Attach: true, OpenStdin: o.interactive, Containers: []string{result.Container},
	}))
}

// change puts into the service what the flags say.
func (o *runOptions) change(s *types.ServiceConfig, p *types.Project, command []string) error {
	s.Tty, s.StdinOpen = !o.noTTY, o.interactive
	if len(command) > 0 {
		s.Command = command
	}
	if o.hasEntrypoint {
		words, err := shellwords.Parse(o.entrypoint)
		if err != nil {
			return fmt.Errorf("--entrypoint: %w", err)
		}
		s.Entrypoint = words
		if len(command) == 0 {
			s.Command = types.ShellCommand{}
		}
	}
	if o.user != "" {
		s.User = o.user
	}
	if o.workdir != "" {
		s.WorkingDir = o.workdir
	}
	s.CapAdd = append(s.CapAdd, o.capAdd.GetSlice()...)
	s.CapDrop = append(s.CapDrop, o.capDrop.GetSlice()...)
	if s.Environment == nil {
		s.Environment = types.MappingWithEquals{}
	}
	for _, file := range o.envFiles {
		if err := readEnv(file, s.Environment); err != nil {
			return err
		}
	}
	for _, e := range o.env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			if value, ok = p.Environment.Resolve(name); !ok {
				s.Environment[name] = nil
				continue
			}
		}
		s.Environment[name] = &value
	}
	if !o.servicePorts {
		s.Ports = nil
		for _, text := range o.publish {
			ports, err := types.ParsePortConfig(text)
			if err != nil {
				return fmt.Errorf("--publish: %w", err)
			}
			s.Ports = append(s.Ports, ports...)
		}
	}
	for _, text := range o.volumes {
		v, err := composeformat.ParseVolume(text)
		if err != nil {
			return fmt.Errorf("--volume: %w", err)
		}
		if v.Type == types.VolumeTypeBind {
			v.Source = p.RelativePath(home(v.Source))
		}
		s.Volumes = append(s.Volumes, v)
	}
	return nil
}

// readEnv reads a file of NAME=VALUE lines.
func readEnv(file string, into types.MappingWithEquals) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		into[strings.TrimSpace(name)] = &value
	}
	return nil
}
