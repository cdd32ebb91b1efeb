package compose

import (
	"context"
	"fmt"
	"slices"

	"github.com/docker/cli/cli/command/formatter"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (t *tool) volumesCommand() *cobra.Command {
	var (
		format string
		quiet  bool
	)
	cmd := &cobra.Command{
		Use:     "volumes [OPTIONS] [SERVICE...]",
		Short:   say("List volumes", "Lista los volúmenes"),
		Example: "  berth compose volumes\n  berth compose volumes --format json db",
		RunE: t.run(func(ctx context.Context, args []string) error {
			_, project, err := t.projectOrName(ctx, args)
			if err != nil {
				return err
			}
			answer, err := t.docker.Client().VolumeList(ctx, client.VolumeListOptions{Filters: projectFilter(project)})
			if err != nil {
				return err
			}
			list := answer.Items
			if len(args) > 0 {
				used := map[string]bool{}
				found, err := t.containers(ctx, project, selection{services: args, stopped: true, oneOff: true})
				if err != nil {
					return err
				}
				for _, c := range found {
					for _, m := range c.Mounts {
						used[m.Name] = true
					}
				}
				list = slices.Clone(list)[:0]
				for _, v := range answer.Items {
					if used[v.Name] {
						list = append(list, v)
					}
				}
			}
			if quiet {
				for _, v := range list {
					fmt.Fprintln(t.docker.Out(), v.Name)
				}
				return nil
			}
			return formatter.VolumeWrite(formatter.Context{Output: t.docker.Out(), Format: formatter.NewVolumeFormat(format, false)}, list)
		}),
		ValidArgsFunction: t.completeServices,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	cmd.Flags().StringVar(&format, "format", "table", cliflags.FormatHelp)
	return cmd
}
