package compose

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (t *tool) topCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "top [SERVICES...]",
		Short: say("Display the running processes", "Muestra los procesos en marcha"),
		RunE: t.run(func(ctx context.Context, args []string) error {
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			if err := t.mustKnow(ctx, project, args...); err != nil {
				return err
			}
			found, err := t.containers(ctx, project, selection{services: args, oneOff: true})
			if err != nil {
				return err
			}
			tops := make([]client.ContainerTopResult, len(found))
			if err := each(ctx, t.limit(), found, func(ctx context.Context, i int, c summary) (err error) {
				tops[i], err = t.docker.Client().ContainerTop(ctx, c.ID, client.ContainerTopOptions{Arguments: []string{}})
				return err
			}); err != nil {
				return err
			}
			return t.writeTop(found, tops)
		}),
		ValidArgsFunction: t.completeServices,
	}
}

// writeTop is one table of all processes; containers may have different columns.
func (t *tool) writeTop(found []summary, tops []client.ContainerTopResult) error {
	columns := []string{"SERVICE", "#"}
	any := false
	for _, top := range tops {
		any = any || len(top.Processes) > 0
		for _, title := range top.Titles {
			if !slices.Contains(columns, title) {
				columns = append(columns, title)
			}
		}
	}
	if !any {
		return nil
	}
	if i := slices.Index(columns, "CMD"); i >= 0 { // the longest stands last
		columns = append(slices.Delete(columns, i, i+1), "CMD")
	}
	w := tabwriter.NewWriter(t.docker.Out(), 4, 1, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(columns, "\t"))
	for i, top := range tops {
		for _, process := range top.Processes {
			cells := make([]string, len(columns))
			for n := range cells {
				cells[n] = "-"
			}
			cells[0], cells[1] = found[i].Labels[labelService], found[i].Labels[labelNumber]
			for n, title := range top.Titles {
				if n < len(process) {
					cells[slices.Index(columns, title)] = process[n]
				}
			}
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
	}
	return w.Flush()
}
