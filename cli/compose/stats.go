package compose

import (
	"context"

	dockercontainer "github.com/docker/cli/cli/command/container"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/spf13/cobra"
)

func (t *tool) statsCommand() *cobra.Command {
	var o dockercontainer.StatsOptions
	cmd := &cobra.Command{
		Use:     "stats [OPTIONS] [SERVICE]",
		Short:   say("Display a live stream of container(s) resource usage statistics", "Muestra en vivo lo que gastan los contenedores"),
		Example: "  berth compose stats --no-stream --format json",
		Args:    cobra.MaximumNArgs(1),
		RunE: t.run(func(ctx context.Context, args []string) error {
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			o.Filters = projectFilter(project)
			if len(args) > 0 {
				if err := t.mustKnow(ctx, project, args[0]); err != nil {
					return err
				}
				o.Filters.Add("label", labelService+"="+args[0])
			}
			return dockercontainer.RunStats(ctx, t.docker, &o)
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.All, "all", "a", false, "Show all containers (default shows just running)")
	f.StringVar(&o.Format, "format", "", cliflags.FormatHelp)
	f.BoolVar(&o.NoStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	f.BoolVar(&o.NoTrunc, "no-trunc", false, "Do not truncate output")
	return cmd
}
