package compose

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

func (t *tool) planCommand() *cobra.Command {
	var (
		o      makeOptions
		format string
		code   bool
	)
	cmd := &cobra.Command{
		Use:   "plan [OPTIONS] [SERVICE...]",
		Short: say("Show what up would do, and why", "Muestra lo que haría up, y por qué"),
		Long:  say("Show what up would do, and why. Nothing is changed.", "Muestra lo que haría up, y por qué. No cambia nada."),
		Example: `  berth compose plan
  berth compose plan --format json | jq '.steps[].id'
  berth compose plan --detailed-exitcode || echo changes`,
		PreRunE:           func(*cobra.Command, []string) error { return o.check() },
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		if format != "text" && format != "json" {
			return badFormat(format, "text", "json")
		}
		d, a, err := t.document(ctx, args)
		if err != nil {
			return err
		}
		p, err := o.policy(t, cmd, a, args)
		if err != nil {
			return err
		}
		plan, err := t.remote().Plan(ctx, app.ApplyRequest{Document: d, Policy: p})
		if err != nil {
			return err
		}
		if format == "json" {
			err = writeJSON(t.docker.Out(), plan)
		} else {
			t.writePlan(plan)
		}
		if err == nil && code && len(plan.Steps) > 0 {
			return exitCode(2)
		}
		return err
	})
	f := cmd.Flags()
	f.StringVar(&format, "format", "text", say(`Output format ("text" or "json")`, `Formato de salida ("text" o "json")`))
	f.BoolVar(&code, "detailed-exitcode", false, say("Exit with 2 where there is something to do", "Termina con 2 si hay algo que hacer"))
	f.BoolVar(&o.build, "build", false, "Build images before starting containers")
	f.StringVar(&o.pull, "pull", "policy", `Pull image before running ("always"|"missing"|"never")`)
	f.BoolVar(&o.forceRecreate, "force-recreate", false, "Recreate containers even if their configuration and image haven't changed")
	f.BoolVar(&o.noRecreate, "no-recreate", false, "If containers already exist, don't recreate them. Incompatible with --force-recreate.")
	f.BoolVar(&o.recreateAll, "always-recreate-deps", false, "Recreate dependent containers. Incompatible with --no-recreate.")
	f.BoolVar(&o.noDeps, "no-deps", false, "Don't start linked services")
	f.BoolVar(&o.removeOrphans, "remove-orphans", truth(envOf("COMPOSE_REMOVE_ORPHANS")), "Remove containers for services not defined in the Compose file")
	f.StringArrayVar(&o.scale, "scale", nil, "Scale SERVICE to NUM instances. Overrides the `scale` setting in the Compose file if present.")
	return cmd
}

// writePlan writes the steps for people.
func (t *tool) writePlan(p app.Plan) {
	out := t.docker.Out()
	for _, w := range p.Warnings {
		t.warn("%s", w)
	}
	if len(p.Steps) == 0 {
		fmt.Fprintf(out, say("%s is as wanted: nothing to do.\n", "%s está como se quiere: nada que hacer.\n"), p.App)
	}
	for _, s := range p.Steps {
		mark, color := "~", "33"
		switch s.Action {
		case app.Create, app.Pull, app.Build:
			mark, color = "+", "32"
		case app.Remove:
			mark, color = "-", "31"
		}
		line := fmt.Sprintf("%s %s %s%s", mark, s.Action, strings.ToLower(kinds[s.Kind]), cmp.Or(s.Final, s.Name))
		if t.color {
			line = "\x1b[" + color + "m" + line + "\x1b[0m"
		}
		if s.Why != "" {
			line += "  (" + s.Why + ")"
		}
		fmt.Fprintln(out, line)
	}
	if len(p.Kept) > 0 {
		fmt.Fprintf(out, say("Unchanged: %s\n", "Sin cambios: %s\n"), strings.Join(p.Kept, ", "))
	}
	if len(p.Orphans) > 0 {
		fmt.Fprintf(out, say("Of no service (--remove-orphans removes them): %s\n", "De ningún servicio (--remove-orphans los elimina): %s\n"), strings.Join(p.Orphans, ", "))
	}
}

func (t *tool) historyCommand() *cobra.Command {
	var (
		format string
		quiet  bool
		limit  int
	)
	cmd := &cobra.Command{
		Use:     "history [OPTIONS]",
		Short:   say("List the revisions of the application", "Lista las revisiones de la aplicación"),
		Example: "  berth compose history\n  berth compose history --format json --limit 5",
		Args:    cobra.NoArgs,
		RunE: t.run(func(ctx context.Context, _ []string) error {
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			list, err := t.remote().History(ctx, strings.ToLower(project), false)
			if err != nil {
				return err
			}
			if limit > 0 && len(list) > limit {
				list = list[:limit]
			}
			out := t.docker.Out()
			switch {
			case quiet:
				for _, r := range list {
					fmt.Fprintln(out, r.Number)
				}
				return nil
			case format == "json":
				return writeJSON(out, append([]app.Revision{}, list...))
			case format == "table":
				var rows [][]string
				for _, r := range list {
					mark := ""
					if r.Current {
						mark = " *"
					}
					verb := r.Verb
					if r.From > 0 {
						verb += " to " + strconv.Itoa(r.From)
					}
					rows = append(rows, []string{strconv.Itoa(r.Number) + mark, units.HumanDuration(time.Since(r.Time)) + " ago", verb, r.Outcome, strings.Join(r.Changes, ", "), r.Comment})
				}
				return writeTable(out, []string{"REVISION", "CREATED", "BY", "OUTCOME", "CHANGES", "COMMENT"}, rows)
			}
			return badFormat(format, "table", "json")
		}),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&format, "format", "table", say(`Output format ("table" or "json")`, `Formato de salida ("table" o "json")`))
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, say("Only display numbers", "Solo los números"))
	cmd.Flags().IntVarP(&limit, "limit", "n", 0, say("Only the latest so many (0: all)", "Solo las últimas (0: todas)"))
	return cmd
}

func (t *tool) rollbackCommand() *cobra.Command {
	var (
		p       app.Policy
		timeout int
	)
	cmd := &cobra.Command{
		Use:   "rollback [OPTIONS] [REVISION]",
		Short: say("Return to an earlier revision", "Vuelve a una revisión anterior"),
		Long: say("Return to an earlier revision: the one before the present one, unless another is named.\nFiles are not read; the daemon kept what was wanted. See `berth compose history`.",
			"Vuelve a una revisión anterior: la previa a la actual, si no se nombra otra.\nNo se leen ficheros; el demonio guardó lo que se quería. Vea `berth compose history`."),
		Example: "  berth compose rollback\n  berth compose rollback 3",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		number := 0
		if len(args) > 0 {
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 {
				return fmt.Errorf("%q is no revision: %s", args[0], say("take a number of `berth compose history`", "use un número de `berth compose history`"))
			}
			number = n
		}
		project, err := t.projectName(ctx)
		if err != nil {
			return err
		}
		p.Timeout, p.Compatibility, p.Parallel = seconds(cmd, timeout), t.compatibility, max(0, t.parallel)
		if t.dryRun {
			return t.pretendRollback(ctx, strings.ToLower(project), number, p)
		}
		_, err = t.do(ctx, "rollback", func(ctx context.Context, w remote.Watch) (app.Result, error) {
			return t.remote().Rollback(ctx, strings.ToLower(project), app.RollbackRequest{Revision: number, Policy: p}, w)
		})
		return err
	})
	f := cmd.Flags()
	f.BoolVar(&p.Wait, "wait", false, say("Wait until all is running or healthy", "Espera a que todo esté en marcha o sano"))
	f.BoolVar(&p.RemoveOrphans, "remove-orphans", truth(envOf("COMPOSE_REMOVE_ORPHANS")), "Remove containers for services not defined in that revision")
	f.IntVarP(&timeout, "timeout", "t", 0, "Specify a shutdown timeout in seconds")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		project, err := t.projectName(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := t.remote().History(cmd.Context(), project, false)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, r := range list {
			names = append(names, strconv.Itoa(r.Number))
		}
		return beginning(names, toComplete), cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

// pretendRollback shows what a return to a revision would do; 0 is the one before the present one.
func (t *tool) pretendRollback(ctx context.Context, project string, number int, p app.Policy) error {
	list, err := t.remote().History(ctx, project, true)
	if err != nil {
		return err
	}
	present := slices.IndexFunc(list, func(r app.Revision) bool { return r.Current })
	at := slices.IndexFunc(list, func(r app.Revision) bool { return r.Number == number })
	if number == 0 && present >= 0 {
		at = present + 1 // latest first
	}
	if at < 0 || at >= len(list) || list[at].Document == nil {
		return fmt.Errorf("%s has no such revision: %s", project, say("take a number of `berth compose history`", "use un número de `berth compose history`"))
	}
	plan, err := t.remote().Plan(ctx, app.ApplyRequest{Document: *list[at].Document, Policy: p})
	if err != nil {
		return err
	}
	t.showPlan("rollback", plan)
	return nil
}
