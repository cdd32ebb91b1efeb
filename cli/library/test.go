package library

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berth-project/berth/cli/library/checkup"
	"github.com/berth-project/berth/cli/library/maker"
	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/recipe"
)

// atOnce is how many images are examined at the same time.
const atOnce = 3

// examined is the result of one image's checks.
type examined struct {
	Name   string          `json:"name"`
	ID     string          `json:"id"`
	Size   int64           `json:"size"`
	Checks []checkup.Check `json:"checks"`
}

func (n *noun) test() *cobra.Command {
	var format string
	var all bool
	cmd := &cobra.Command{
		Use:   "test [OPTIONS] NAME [NAME...]",
		Short: locale.Say("Make official images and examine them", "Hacer imágenes oficiales y examinarlas"),
		Long: locale.Say(`Make official images (those that are not up to date) and examine each:
its size, that it holds no secrets, starts, runs as the right user, becomes
healthy, logs to the container's log, stops in time, and keeps what is in its
volumes. The exit code is 1 when a check fails.`,
			`Hacer imágenes oficiales (las que no estén al día) y examinar cada una: su
tamaño, que no contenga secretos, que arranque, con qué usuario se ejecuta, su
salud, su registro, que pare a tiempo y que conserve lo que hay en sus
volúmenes. El código de salida es 1 si falla alguna comprobación.`),
		Example:           "  berth library test postgres\n  berth library test --all --format json",
		ValidArgsFunction: n.completeNames(0),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := n.chosen(args, all)
		if err != nil {
			return err
		}
		m, err := n.maker(cmd.Context(), n.docker.Client(), maker.Options{})
		if err != nil {
			return err
		}
		defer m.Close()
		results, err := n.examine(cmd.Context(), m, list)
		if err != nil {
			return err
		}
		if format == "json" {
			err = writeJSON(n.docker.Out(), results)
		} else {
			err = n.verdicts(results)
		}
		for _, x := range results {
			for _, c := range x.Checks {
				if err == nil && c.Verdict == checkup.Bad {
					err = cli.StatusError{StatusCode: 1}
				}
			}
		}
		return err
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, locale.Say("Examine all images", "Examinar todas las imágenes"))
	n.mirrorFlags(cmd)
	n.formatFlag(cmd, &format)
	return cmd
}

// examine makes images one after another and checks each while the next are made.
func (n *noun) examine(ctx context.Context, m *maker.Maker, list []*recipe.Recipe) ([]examined, error) {
	say := n.progress()
	results := make([]examined, len(list))
	checks, inner := errgroup.WithContext(ctx)
	checks.SetLimit(atOnce)
	for i, r := range list {
		for _, w := range r.Manifest.Check.With {
			if _, err := m.Make(inner, w.Image); err != nil {
				return nil, errors.Join(err, checks.Wait())
			}
		}
		made, err := m.Make(inner, r.Name)
		if err != nil {
			return nil, errors.Join(err, checks.Wait())
		}
		checks.Go(func() error {
			say(maker.Report{Image: r.Name, Step: "check"})
			found, err := checkup.Examine(inner, n.docker.Client(), r, made.ID, m.Label())
			if err != nil {
				return fmt.Errorf("check %s: %w", r.Name, err)
			}
			results[i] = examined{Name: r.Name, ID: made.ID, Size: made.Size, Checks: found}
			return nil
		})
	}
	return results, checks.Wait()
}

func (n *noun) verdicts(results []examined) error {
	t := tabwriter.NewWriter(n.docker.Out(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s\t%s\t%s\n", locale.Say("NAME", "NOMBRE"), locale.Say("SIZE", "TAMAÑO"), strings.ToUpper(strings.Join(checkup.Names, "\t")))
	marks := map[string]string{checkup.OK: "ok", checkup.Bad: locale.Say("FAILED", "FALLA"), checkup.None: "-"}
	var details []string
	for _, x := range results {
		line := []string{x.Name, mb(float64(x.Size) / 1e6)}
		for _, name := range checkup.Names {
			for _, c := range x.Checks {
				if c.Name != name {
					continue
				}
				line = append(line, marks[c.Verdict])
				if c.Verdict == checkup.Bad {
					details = append(details, x.Name+": "+c.Name+": "+c.Detail)
				}
			}
		}
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, d := range details {
		fmt.Fprintln(n.docker.Err(), d)
	}
	return nil
}
