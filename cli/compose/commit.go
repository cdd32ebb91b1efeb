package compose

import (
	"context"

	"github.com/docker/cli/opts"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (t *tool) commitCommand() *cobra.Command {
	var (
		o       client.ContainerCommitOptions
		pause   bool
		changes = opts.NewListOpts(nil)
		index   int
	)
	cmd := &cobra.Command{
		Use:   "commit [OPTIONS] SERVICE [REPOSITORY[:TAG]]",
		Short: say("Create a new image from a service container's changes", "Crea una imagen con los cambios de un contenedor de un servicio"),
		Args:  cobra.RangeArgs(1, 2),
		RunE: t.run(func(ctx context.Context, args []string) error {
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			c, err := t.one(ctx, project, args[0], index, true, false)
			if err != nil {
				return err
			}
			o.NoPause, o.Changes = !pause, changes.GetSlice()
			if len(args) > 1 {
				o.Reference = args[1]
			}
			id := nameOf(c)
			t.screen.begin("commit")
			t.screen.on(event{id: id, text: "Committing"})
			result := client.ContainerCommitResult{}
			if !t.dryRun {
				result, err = t.docker.Client().ContainerCommit(ctx, c.ID, o)
			}
			if err != nil {
				t.screen.on(event{id: id, state: failed, text: "Error", details: err.Error()})
			} else {
				t.screen.on(event{id: id, state: done, text: "Committed as " + result.ID})
			}
			t.screen.end(err == nil)
			return err
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.IntVar(&index, "index", 0, "index of the container if service has multiple replicas.")
	f.BoolVarP(&pause, "pause", "p", true, "Pause container during commit")
	f.StringVarP(&o.Comment, "message", "m", "", "Commit message")
	f.StringVarP(&o.Author, "author", "a", "", `Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")`)
	f.VarP(&changes, "change", "c", "Apply Dockerfile instruction to the created image")
	return cmd
}
