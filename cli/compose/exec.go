package compose

import (
	"context"
	"errors"

	dockercli "github.com/docker/cli/cli"
	dockercontainer "github.com/docker/cli/cli/command/container"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (t *tool) execCommand() *cobra.Command {
	var (
		o                         = dockercontainer.NewExecOptions()
		env                       []string
		index                     int
		noTTY, interactive, isTTY bool
	)
	cmd := &cobra.Command{
		Use:     "exec [OPTIONS] SERVICE COMMAND [ARGS...]",
		Short:   say("Execute a command in a running container", "Ejecuta una orden en un contenedor en marcha"),
		Example: "  berth compose exec web sh\n  berth compose exec -T db pg_dump shop > shop.sql",
		Args:    cobra.MinimumNArgs(2),
		RunE: t.run(func(ctx context.Context, args []string) error {
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			c, err := t.one(ctx, project, args[0], index, false, true)
			if err != nil {
				return err
			}
			o.Command, o.TTY, o.Interactive = args[1:], !noTTY, interactive
			for _, e := range env {
				if err := o.Env.Set(e); err != nil {
					return err
				}
			}
			if t.dryRun {
				t.screen.on(event{id: "Container " + nameOf(c), state: done, text: "Executed"})
				return nil
			}
			return exitStatus(dockercontainer.RunExec(ctx, t.docker, c.ID, o))
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Detach, "detach", "d", false, "Detached mode: Run command in the background")
	f.StringArrayVarP(&env, "env", "e", nil, "Set environment variables")
	f.IntVar(&index, "index", 0, "Index of the container if service has multiple replicas")
	f.BoolVar(&o.Privileged, "privileged", false, "Give extended privileges to the process")
	f.StringVarP(&o.User, "user", "u", "", "Run the command as this user")
	f.BoolVarP(&noTTY, "no-tty", "T", !t.docker.Out().IsTerminal(), "Disable pseudo-TTY allocation. By default 'docker compose exec' allocates a TTY.")
	f.StringVarP(&o.Workdir, "workdir", "w", "", "Path to workdir directory for this command")
	f.BoolVarP(&interactive, "interactive", "i", true, "Keep STDIN open even if not attached")
	f.BoolVarP(&isTTY, "tty", "t", true, "Allocate a pseudo-TTY")
	hide(f, "interactive", "tty")
	f.SetInterspersed(false)
	f.SetNormalizeFunc(renames(map[string]string{"no-TTY": "no-tty"}))
	return cmd
}

// exitStatus lets an exit code through without words of its own: the command has spoken.
func exitStatus(err error) error {
	var status dockercli.StatusError
	if errors.As(err, &status) && status.Status == "" && status.Cause == nil {
		return dockercli.StatusError{StatusCode: status.StatusCode}
	}
	return err
}

// hide takes flags out of the help; they are there for old scripts.
func hide(f *pflag.FlagSet, names ...string) {
	for _, n := range names {
		if err := f.MarkHidden(n); err != nil {
			panic(err) // a flag that is not there: seen by any test
		}
	}
}

// renames lets old names of flags live on.
func renames(old map[string]string) func(*pflag.FlagSet, string) pflag.NormalizedName {
	return func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if n, ok := old[name]; ok {
			name = n
		}
		return pflag.NormalizedName(name)
	}
}
