package compose

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

func (t *tool) downCommand() *cobra.Command {
	var (
		r       app.DownRequest
		timeout int
	)
	cmd := &cobra.Command{
		Use:     "down [OPTIONS] [SERVICES]",
		Short:   say("Stop and remove containers, networks", "Detiene y elimina contenedores y redes"),
		Example: "  berth compose down\n  berth compose down -v --rmi local",
		PreRunE: func(*cobra.Command, []string) error {
			if r.Images != "" && r.Images != "all" && r.Images != "local" {
				return fmt.Errorf("invalid value for --rmi: %q: use local or all", r.Images)
			}
			return nil
		},
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		r.Timeout, r.Services, r.Parallel = seconds(cmd, timeout), args, max(0, t.parallel)
		a, project, err := t.projectOrName(ctx, args)
		if err != nil {
			return err
		}
		if a != nil {
			d, err := app.NewDocument(a)
			if err != nil {
				return err
			}
			r.Document = &d
		}
		project = strings.ToLower(project)
		if t.dryRun {
			return t.pretendDown(ctx, a, project, r)
		}
		_, err = t.do(ctx, "down", func(ctx context.Context, w remote.Watch) (app.Result, error) {
			return t.remote().Down(ctx, project, r, w)
		})
		return err
	})
	f := cmd.Flags()
	f.BoolVar(&r.RemoveOrphans, "remove-orphans", truth(envOf("COMPOSE_REMOVE_ORPHANS")), "Remove containers for services not defined in the Compose file")
	f.IntVarP(&timeout, "timeout", "t", 0, "Specify a shutdown timeout in seconds")
	f.BoolVarP(&r.Volumes, "volumes", "v", false, `Remove named volumes declared in the "volumes" section of the Compose file and anonymous volumes attached to containers`)
	f.StringVar(&r.Images, "rmi", "", `Remove images used by services. "local" remove only images that don't have a custom tag ("local"|"all")`)
	f.SetNormalizeFunc(renames(map[string]string{"volume": "volumes"}))
	return cmd
}

// pretendDown shows what a down would remove.
func (t *tool) pretendDown(ctx context.Context, a *app.App, project string, r app.DownRequest) error {
	services := r.Services
	if !r.RemoveOrphans {
		services = wanted(a, services)
	}
	found, err := t.containers(ctx, project, selection{services: services, stopped: true, oneOff: true})
	if err != nil {
		return err
	}
	t.screen.begin("down")
	defer t.screen.end(true)
	gone := func(id string, words [2]string) {
		t.screen.on(event{id: id, text: words[0]})
		t.screen.on(event{id: id, text: words[1], state: done})
	}
	for _, c := range found {
		if isTouched("stop", c.State) {
			gone("Container "+nameOf(c), verbs[app.Stop])
		}
		gone("Container "+nameOf(c), verbs[app.Remove])
	}
	if len(r.Services) > 0 {
		return nil
	}
	networks, err := t.docker.Client().NetworkList(ctx, client.NetworkListOptions{Filters: projectFilter(project)})
	if err != nil {
		return err
	}
	for _, n := range networks.Items {
		gone("Network "+n.Name, verbs[app.Remove])
	}
	if !r.Volumes {
		return nil
	}
	volumes, err := t.docker.Client().VolumeList(ctx, client.VolumeListOptions{Filters: projectFilter(project)})
	if err != nil {
		return err
	}
	for _, v := range volumes.Items {
		gone("Volume "+v.Name, verbs[app.Remove])
	}
	return nil
}
