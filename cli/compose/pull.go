package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

func (t *tool) pullCommand() *cobra.Command {
	var (
		quietly, deps, ignoreFailures, ignoreBuildable bool
		policy                                         string
	)
	cmd := &cobra.Command{
		Use:     "pull [OPTIONS] [SERVICE...]",
		Short:   say("Pull service images", "Descarga las imágenes de los servicios"),
		Example: "  berth compose pull\n  berth compose pull --policy missing web",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			for _, old := range []string{"parallel", "no-parallel"} {
				if cmd.Flags().Changed(old) {
					fmt.Fprintf(t.docker.Err(), "option '--%s' is DEPRECATED and will be ignored.\n", old)
				}
			}
			if policy != "" && policy != "missing" && policy != "always" {
				return fmt.Errorf("invalid --policy %q: use missing or always", policy)
			}
			return nil
		},
		RunE: t.run(func(ctx context.Context, args []string) error {
			if quietly {
				t.screen = quiet{}
			}
			a, err := t.load(ctx, args)
			if err != nil {
				return err
			}
			if ignoreBuildable {
				for name, s := range a.Project.Services {
					if s.Build != nil {
						delete(a.Project.Services, name)
					}
				}
			}
			d, err := app.NewDocument(a)
			if err != nil {
				return err
			}
			r := app.ApplyRequest{Document: d, Auth: t.auths(a), Policy: app.Policy{Services: args, NoDeps: !deps, Pull: policy, Parallel: max(0, t.parallel)}}
			if t.dryRun {
				return t.pretendPull(ctx, r)
			}
			_, err = t.do(ctx, "pull", func(ctx context.Context, w remote.Watch) (app.Result, error) { return t.remote().Pull(ctx, r, w) })
			if err != nil && ignoreFailures && ctx.Err() == nil && !errors.Is(err, remote.ErrNoBerth) {
				t.warn("%v", err)
				return nil
			}
			return err
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVarP(&quietly, "quiet", "q", false, "Pull without printing progress information")
	f.BoolVar(&deps, "include-deps", false, "Also pull services declared as dependencies")
	f.Bool("parallel", true, "DEPRECATED pull multiple images in parallel")
	f.Bool("no-parallel", true, "DEPRECATED disable parallel pulling")
	hide(f, "parallel", "no-parallel")
	f.BoolVar(&ignoreFailures, "ignore-pull-failures", false, "Pull what it can and ignores images with pull failures")
	f.BoolVar(&ignoreBuildable, "ignore-buildable", false, "Ignore images that can be built")
	f.StringVar(&policy, "policy", "", `Apply pull policy ("missing"|"always")`)
	return cmd
}

// pretendPull shows which images would be pulled.
func (t *tool) pretendPull(ctx context.Context, r app.ApplyRequest) error {
	r.Policy.Pull, r.Policy.NoBuild = cmp.Or(r.Policy.Pull, "always"), true
	plan, err := t.remote().Plan(ctx, r)
	if err != nil {
		return err
	}
	t.showPlan("pull", app.Plan{App: plan.App, Steps: slices.DeleteFunc(plan.Steps, func(s app.Step) bool { return s.Action != app.Pull })})
	return nil
}
