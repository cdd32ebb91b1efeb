package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

// makeOptions are the flags that up, create and run share about making containers.
type makeOptions struct {
	build, noBuild, quietBuild             bool
	pull                                   string
	removeOrphans                          bool
	forceRecreate, noRecreate, recreateAll bool
	renewVolumes                           bool
	timeout                                int
	scale                                  []string
	yes                                    bool
	noDeps                                 bool
	buildOut                               io.Writer // where the builder's progress goes; nil is the standard output
}

func (o *makeOptions) check() error {
	for _, pair := range []struct {
		bad  bool
		text string
	}{
		{o.build && o.noBuild, "--build and --no-build are incompatible"},
		{o.forceRecreate && o.noRecreate, "--force-recreate and --no-recreate are incompatible"},
		{o.recreateAll && o.noRecreate, "--always-recreate-deps and --no-recreate are incompatible"},
		{o.renewVolumes && o.noRecreate, "--no-recreate and --renew-anon-volumes are incompatible"},
	} {
		if pair.bad {
			return errors.New(pair.text)
		}
	}
	if !slices.Contains([]string{"policy", "always", "missing", "never", "build", "if_not_present"}, o.pull) {
		return fmt.Errorf("invalid --pull option %q: use always, missing, never or build", o.pull)
	}
	return nil
}

// policy is what the flags mean to the daemon.
func (o *makeOptions) policy(t *tool, cmd *cobra.Command, a *app.App, services []string) (app.Policy, error) {
	p := app.Policy{
		Services: services, NoDeps: o.noDeps, RenewVolumes: o.renewVolumes, ReplaceVolume: o.yes, RemoveOrphans: o.removeOrphans,
		Build: o.build, NoBuild: o.noBuild, Timeout: seconds(cmd, o.timeout), Compatibility: t.isCompatible(a.Project), Parallel: max(0, t.parallel),
	}
	switch o.pull {
	case "policy", "":
	case "if_not_present":
		p.Pull = "missing"
	default:
		p.Pull = o.pull
	}
	switch {
	case o.noRecreate:
		p.Recreate, p.RecreateDeps = app.RecreateNever, app.RecreateNever
	case o.forceRecreate || o.renewVolumes:
		p.Recreate = app.RecreateForce
	}
	if o.recreateAll {
		p.RecreateDeps = app.RecreateForce
	}
	for _, s := range o.scale {
		name, n, err := replicas(s)
		if err != nil {
			return p, fmt.Errorf("invalid --scale option %q. Should be SERVICE=NUM", s)
		}
		if err := known(a, []string{name}); err != nil {
			return p, err
		}
		if p.Scale == nil {
			p.Scale = map[string]int{}
		}
		p.Scale[name] = n
	}
	return p, nil
}

// replicas reads SERVICE=NUM.
func replicas(s string) (service string, n int, err error) {
	service, value, ok := strings.Cut(s, "=")
	if !ok || service == "" || value == "" {
		return "", 0, fmt.Errorf("invalid scale specifier: %s", s)
	}
	n, err = strconv.Atoi(value)
	if err != nil || n < 0 {
		return "", 0, fmt.Errorf("invalid scale specifier: can't parse replica value as int: %s", s)
	}
	return service, n, nil
}

func (t *tool) createCommand() *cobra.Command {
	var o makeOptions
	cmd := &cobra.Command{
		Use:               "create [OPTIONS] [SERVICE...]",
		Short:             say("Creates containers for a service", "Crea los contenedores, sin arrancarlos"),
		Example:           "  berth compose create\n  berth compose create --force-recreate web",
		PreRunE:           func(*cobra.Command, []string) error { return o.check() },
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		d, a, err := t.document(ctx, args)
		if err != nil {
			return err
		}
		p, err := o.policy(t, cmd, a, args)
		if err != nil {
			return err
		}
		p.NoStart = true
		if err := t.buildFirst(ctx, &o, a, args, &p); err != nil {
			return err
		}
		return t.apply(ctx, "create", d, a, p)
	})
	f := cmd.Flags()
	f.BoolVar(&o.build, "build", false, "Build images before starting containers")
	f.BoolVar(&o.noBuild, "no-build", false, "Don't build an image, even if it's policy")
	f.StringVar(&o.pull, "pull", "policy", `Pull image before running ("always"|"missing"|"never"|"build")`)
	f.BoolVar(&t.quietPull, "quiet-pull", false, "Pull without printing progress information")
	f.BoolVar(&o.forceRecreate, "force-recreate", false, "Recreate containers even if their configuration and image haven't changed")
	f.BoolVar(&o.noRecreate, "no-recreate", false, "If containers already exist, don't recreate them. Incompatible with --force-recreate.")
	f.BoolVar(&o.removeOrphans, "remove-orphans", truth(envOf("COMPOSE_REMOVE_ORPHANS")), "Remove containers for services not defined in the Compose file")
	f.StringArrayVar(&o.scale, "scale", nil, "Scale SERVICE to NUM instances. Overrides the `scale` setting in the Compose file if present.")
	f.BoolVarP(&o.yes, "yes", "y", false, `Assume "yes" as answer to all prompts and run non-interactively`)
	f.SetNormalizeFunc(renames(map[string]string{"y": "yes"}))
	return cmd
}

// apply makes the application what the document says, or shows what would be done.
func (t *tool) apply(ctx context.Context, verb string, d app.Document, a *app.App, p app.Policy) error {
	r := app.ApplyRequest{Document: d, Policy: p, Auth: t.auths(a)}
	if t.dryRun {
		plan, err := t.remote().Plan(ctx, r)
		if err != nil {
			return err
		}
		t.showPlan(verb, plan)
		return nil
	}
	_, err := t.do(ctx, verb, func(ctx context.Context, w remote.Watch) (app.Result, error) { return t.remote().Apply(ctx, r, w) })
	return err
}

// withLimit ends a context after some seconds; 0 is no limit.
func withLimit(ctx context.Context, limit int) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, time.Duration(limit)*time.Second, errTooLate)
}
