package compose

import (
	"context"
	"fmt"
	"sync"

	dockercli "github.com/docker/cli/cli"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

func (t *tool) waitCommand() *cobra.Command {
	var down bool
	cmd := &cobra.Command{
		Use:     "wait SERVICE [SERVICE...] [OPTIONS]",
		Short:   say("Block until containers of all (or specified) services stop.", "Espera a que terminen los contenedores de los servicios."),
		Example: "  berth compose wait migrate\n  berth compose wait --down-project tests",
		Args:    dockercli.RequiresMinArgs(1),
		RunE: t.run(func(ctx context.Context, args []string) error {
			if err := t.noDryRun("wait"); err != nil {
				return err
			}
			_, project, err := t.projectOrName(ctx, nil)
			if err != nil {
				return err
			}
			code, err := t.waitFor(ctx, project, args, down)
			if err != nil || code == 0 {
				return err
			}
			return dockercli.StatusError{StatusCode: code}
		}),
		ValidArgsFunction: t.completeServices,
	}
	cmd.Flags().BoolVar(&down, "down-project", false, "Drops project when the first container stops")
	return cmd
}

// waitFor gives the exit code of the container that ended last, or, when the
// project is to go down with the first, of that one.
func (t *tool) waitFor(ctx context.Context, project string, services []string, down bool) (int, error) {
	// One that ended already has been waited for: its code counts.
	found, err := t.containers(ctx, project, selection{services: services, stopped: true})
	if err != nil {
		return 0, err
	}
	if len(found) == 0 {
		if err := t.mustKnow(ctx, project, services...); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("no containers for project %q", project)
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu   sync.Mutex
		code int
		one  bool
	)
	err = each(waiting, len(found), found, func(ctx context.Context, _ int, c summary) error {
		w := t.docker.Client().ContainerWait(ctx, c.ID, client.ContainerWaitOptions{})
		select {
		case r := <-w.Result:
			mu.Lock()
			defer mu.Unlock()
			if down && one {
				return nil
			}
			one, code = true, int(r.StatusCode)
			fmt.Fprintf(t.docker.Out(), "container %q exited with status code %d\n", c.ID, r.StatusCode)
			if down {
				cancel()
			}
			return nil
		case err := <-w.Error:
			mu.Lock()
			defer mu.Unlock()
			if down && one {
				return nil // called off: the first has ended
			}
			return err
		}
	})
	if err != nil {
		return 0, err
	}
	if down {
		_, err = t.do(ctx, "down", func(ctx context.Context, w remote.Watch) (app.Result, error) {
			return t.remote().Down(ctx, project, app.DownRequest{RemoveOrphans: true}, w)
		})
	}
	return code, err
}
