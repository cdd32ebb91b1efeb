package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/format/compose"
)

func envOf(name string) string { return os.Getenv(name) }

// act does one thing (start, stop, …) to the containers of a project.
func (t *tool) act(ctx context.Context, verb string, services []string, r app.ActRequest) error {
	a, project, err := t.projectOrName(ctx, services)
	if err != nil {
		return err
	}
	return t.actOn(ctx, a, project, verb, services, r)
}

func (t *tool) actOn(ctx context.Context, a *app.App, project, verb string, services []string, r app.ActRequest) error {
	project = strings.ToLower(project)
	r.Services, r.Parallel = services, max(0, t.parallel)
	if a != nil {
		d, err := app.NewDocument(a)
		if err != nil {
			return err
		}
		r.Document = &d
	}
	if t.dryRun {
		return t.pretend(ctx, project, verb, wanted(a, services))
	}
	_, err := t.do(ctx, verb, func(ctx context.Context, w remote.Watch) (app.Result, error) {
		return t.remote().Act(ctx, project, verb, r, w)
	})
	return err
}

// pretend shows which containers a command would touch.
func (t *tool) pretend(ctx context.Context, project, verb string, services []string) error {
	found, err := t.containers(ctx, project, selection{services: services, stopped: true})
	if err != nil {
		return err
	}
	words := verbs[app.Action(cmp.Or(map[string]string{"rm": "remove"}[verb], verb))]
	t.screen.begin(verb)
	for _, c := range found {
		if isTouched(verb, c.State) {
			t.screen.on(event{id: "Container " + nameOf(c), text: words[0]})
			t.screen.on(event{id: "Container " + nameOf(c), text: words[1], state: done})
		}
	}
	t.screen.end(true)
	return nil
}

// isTouched tells whether a container in a state has anything to do with a command.
func isTouched(verb string, s container.ContainerState) bool {
	running := s == container.StateRunning || s == container.StateRestarting
	switch verb {
	case "start":
		return !running && s != container.StatePaused
	case "stop", "kill":
		return running || s == container.StatePaused
	case "pause":
		return running
	case "unpause":
		return s == container.StatePaused
	case "rm":
		return !running
	}
	return true
}

// seconds gives a flag's value only where it was given.
func seconds(cmd *cobra.Command, n int) *int {
	if cmd.Flags().Changed("timeout") {
		return &n
	}
	return nil
}

func (t *tool) startCommand() *cobra.Command {
	var (
		wait  bool
		limit int
	)
	cmd := &cobra.Command{
		Use:   "start [SERVICE...]",
		Short: say("Start services", "Arranca servicios"),
		RunE: t.run(func(ctx context.Context, args []string) error {
			ctx, cancel := withLimit(ctx, limit)
			defer cancel()
			return limited(ctx, limit, t.act(ctx, "start", args, app.ActRequest{Wait: wait}))
		}),
		ValidArgsFunction: t.completeServices,
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "Wait for services to be running|healthy. Implies detached mode.")
	cmd.Flags().IntVar(&limit, "wait-timeout", 0, "Maximum duration in seconds to wait for the project to be running|healthy")
	return cmd
}

func (t *tool) stopCommand() *cobra.Command {
	var timeout int
	cmd := &cobra.Command{
		Use:               "stop [OPTIONS] [SERVICE...]",
		Short:             say("Stop services", "Detiene servicios"),
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		return t.act(ctx, "stop", args, app.ActRequest{Timeout: seconds(cmd, timeout)})
	})
	cmd.Flags().IntVarP(&timeout, "timeout", "t", 0, "Specify a shutdown timeout in seconds")
	return cmd
}

func (t *tool) restartCommand() *cobra.Command {
	var (
		timeout int
		noDeps  bool
	)
	cmd := &cobra.Command{
		Use:               "restart [OPTIONS] [SERVICE...]",
		Short:             say("Restart service containers", "Reinicia los contenedores de los servicios"),
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		a, project, err := t.projectOrName(ctx, nil) // all of the file: others may depend on those named
		if err != nil {
			return err
		}
		if err := known(a, args); err != nil {
			return err
		}
		return t.actOn(ctx, a, project, "restart", args, app.ActRequest{Timeout: seconds(cmd, timeout), NoDeps: noDeps})
	})
	cmd.Flags().IntVarP(&timeout, "timeout", "t", 0, "Specify a shutdown timeout in seconds")
	cmd.Flags().BoolVar(&noDeps, "no-deps", false, "Don't restart dependent services")
	return cmd
}

// known refuses services that the file does not have.
func known(a *app.App, services []string) error {
	if a == nil {
		return nil
	}
	names := append(a.Project.ServiceNames(), a.Project.DisabledServiceNames()...)
	for _, s := range services {
		if !slices.Contains(names, s) {
			return compose.NoService(s, names)
		}
	}
	return nil
}

func (t *tool) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "pause [SERVICE...]",
		Short:             say("Pause services", "Pausa servicios"),
		RunE:              t.run(func(ctx context.Context, args []string) error { return t.act(ctx, "pause", args, app.ActRequest{}) }),
		ValidArgsFunction: t.completeServices,
	}
}

func (t *tool) unpauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "unpause [SERVICE...]",
		Short:             say("Unpause services", "Reanuda servicios pausados"),
		RunE:              t.run(func(ctx context.Context, args []string) error { return t.act(ctx, "unpause", args, app.ActRequest{}) }),
		ValidArgsFunction: t.completeServices,
	}
}

func (t *tool) killCommand() *cobra.Command {
	var (
		orphans bool
		signal  string
	)
	cmd := &cobra.Command{
		Use:     "kill [OPTIONS] [SERVICE...]",
		Short:   say("Force stop service containers", "Detiene los contenedores por la fuerza"),
		Example: "  berth compose kill web\n  berth compose kill -s HUP web",
		RunE: t.run(func(ctx context.Context, args []string) error {
			a, project, err := t.projectOrName(ctx, args)
			if err != nil {
				return err
			}
			found, err := t.containers(ctx, project, selection{services: args, oneOff: true})
			if err != nil {
				return err
			}
			if !orphans && len(args) == 0 && a != nil {
				found = slices.DeleteFunc(found, func(c summary) bool { return !slices.Contains(a.Project.ServiceNames(), c.Labels[labelService]) })
			}
			if len(found) == 0 {
				fmt.Fprintln(t.docker.Err(), say("No container to kill", "No hay contenedor que matar"))
				return nil
			}
			return t.actOn(ctx, a, project, "kill", args, app.ActRequest{Signal: signal, RemoveOrphans: orphans})
		}),
		ValidArgsFunction: t.completeServices,
	}
	cmd.Flags().BoolVar(&orphans, "remove-orphans", truth(envOf("COMPOSE_REMOVE_ORPHANS")), "Remove containers for services not defined in the Compose file")
	cmd.Flags().StringVarP(&signal, "signal", "s", "SIGKILL", "SIGNAL to send to the container")
	return cmd
}

func (t *tool) removeCommand() *cobra.Command {
	var force, stop, volumes bool
	cmd := &cobra.Command{
		Use:   "rm [OPTIONS] [SERVICE...]",
		Short: say("Removes stopped service containers", "Elimina los contenedores parados"),
		Long: say("Removes stopped service containers\n\nBy default, anonymous volumes attached to containers will not be removed. You\ncan override this with -v. To list all volumes, use \"docker volume ls\".\n\nAny data which is not in a volume will be lost.",
			"Elimina los contenedores parados\n\nLos volúmenes anónimos se conservan, salvo con -v. Lo que no esté en un volumen se pierde."),
		Example:           "  berth compose rm -f\n  berth compose rm -sfv web",
		RunE:              t.run(func(ctx context.Context, args []string) error { return t.remove(ctx, args, force, stop, volumes) }),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "Don't ask to confirm removal")
	f.BoolVarP(&stop, "stop", "s", false, "Stop the containers, if required, before removing")
	f.BoolVarP(&volumes, "volumes", "v", false, "Remove any anonymous volumes attached to containers")
	f.BoolP("all", "a", false, "Deprecated - no effect")
	hide(f, "all")
	return cmd
}

func (t *tool) remove(ctx context.Context, services []string, force, stop, volumes bool) error {
	a, project, err := t.projectOrName(ctx, services)
	if err != nil {
		return err
	}
	found, err := t.containers(ctx, project, selection{services: wanted(a, services), stopped: true})
	if err != nil {
		return err
	}
	var names []string
	for _, c := range found {
		if stop || isTouched("rm", c.State) {
			names = append(names, nameOf(c))
		}
	}
	if len(names) == 0 {
		fmt.Fprintln(t.docker.Err(), say("No stopped containers", "No hay contenedores parados"))
		return nil
	}
	question := say("Going to remove ", "Se eliminarán ") + strings.Join(names, ", ")
	if force {
		fmt.Fprintln(t.docker.Out(), question)
	} else if ok, err := t.confirm(ctx, question, false); err != nil || !ok {
		return err
	}
	return t.actOn(ctx, a, project, "rm", services, app.ActRequest{Volumes: volumes, Stop: stop})
}

// errTooLate says that a wait was limited.
var errTooLate = errors.New("timeout waiting for the project to be running|healthy")

func limited(ctx context.Context, limit int, err error) error {
	if err != nil && limit > 0 && errors.Is(context.Cause(ctx), errTooLate) {
		return fmt.Errorf("%w (%d s): %s", errTooLate, limit, say("see `berth compose ps` and `berth compose logs`", "vea `berth compose ps` y `berth compose logs`"))
	}
	return err
}
