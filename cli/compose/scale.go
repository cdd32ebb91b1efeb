package compose

import (
	"context"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

func (t *tool) scaleCommand() *cobra.Command {
	var noDeps bool
	cmd := &cobra.Command{
		Use:     "scale [SERVICE=REPLICAS...]",
		Short:   say("Scale services", "Cambia el número de contenedores de los servicios"),
		Example: "  berth compose scale web=3 worker=5",
		Args:    cobra.MinimumNArgs(1),
		RunE: t.run(func(ctx context.Context, args []string) error {
			scale := map[string]int{}
			for _, s := range args {
				name, n, err := replicas(s)
				if err != nil {
					return err
				}
				scale[name] = n
			}
			services := slices.Sorted(maps.Keys(scale))
			d, a, err := t.document(ctx, services)
			if err != nil {
				return err
			}
			if t.dryRun {
				return t.apply(ctx, "scale", d, a, app.Policy{Services: services, NoDeps: noDeps, Scale: scale, Compatibility: t.isCompatible(a.Project)})
			}
			_, err = t.do(ctx, "scale", func(ctx context.Context, w remote.Watch) (app.Result, error) {
				return t.remote().Scale(ctx, d.Name, app.ScaleRequest{Document: &d, Scale: scale, NoDeps: noDeps, Parallel: max(0, t.parallel)}, w)
			})
			return err
		}),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			names, _ := t.completeServices(cmd, args, toComplete)
			for i := range names {
				names[i] += "="
			}
			return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&noDeps, "no-deps", false, "Don't start linked services")
	return cmd
}
