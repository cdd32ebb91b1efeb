package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/cli/opts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// projectRow is a line of ls.
type projectRow struct {
	Name        string
	Status      string
	ConfigFiles string
}

func (t *tool) listCommand() *cobra.Command {
	var (
		format     string
		quiet, all bool
		filter     = opts.NewFilterOpt()
	)
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Short:   say("List running compose projects", "Lista los proyectos en ejecución"),
		Example: "  berth compose ls -a\n  berth compose ls --format json",
		Args:    cobra.NoArgs,
		RunE: t.run(func(ctx context.Context, _ []string) error {
			for key := range filter.Value() {
				if key != "name" {
					return errors.New("invalid filter '" + key + "'")
				}
			}
			rows, err := t.projects(ctx, all)
			if err != nil {
				return err
			}
			if names := filter.Value()["name"]; len(names) > 0 {
				rows = slices.DeleteFunc(rows, func(r projectRow) bool { return !matchesAny(r.Name, names) })
			}
			out := t.docker.Out()
			switch {
			case quiet:
				for _, r := range rows {
					fmt.Fprintln(out, r.Name)
				}
				return nil
			case strings.EqualFold(format, "json"):
				return writeJSON(out, append([]projectRow{}, rows...))
			case format == "" || strings.EqualFold(format, "table") || strings.EqualFold(format, "pretty"):
				lines := [][]string{}
				for _, r := range rows {
					lines = append(lines, []string{r.Name, r.Status, r.ConfigFiles})
				}
				return writeTable(out, []string{"NAME", "STATUS", "CONFIG FILES"}, lines)
			}
			return badFormat(format, "table", "json")
		}),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", "table", "Format the output. Values: [table | json]")
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display project names")
	f.Var(&filter, "filter", "Filter output based on conditions provided")
	f.BoolVarP(&all, "all", "a", false, "Show all stopped Compose projects")
	return cmd
}

// matchesAny tells whether a name is one of the values, or a pattern of theirs finds itself in it.
func matchesAny(name string, values map[string]bool) bool {
	if values[name] {
		return true
	}
	for v := range values {
		if re, err := regexp.Compile(v); err == nil && re.MatchString(name) {
			return true
		}
	}
	return false
}

// projects groups the containers of the engine by project.
func (t *tool) projects(ctx context.Context, stopped bool) ([]projectRow, error) {
	list, err := t.docker.Client().ContainerList(ctx, client.ContainerListOptions{
		All: stopped, Filters: make(client.Filters).Add("label", labelProject).Add("label", labelHash),
	})
	if err != nil {
		return nil, err
	}
	groups := map[string][]container.Summary{}
	for _, c := range list.Items {
		groups[c.Labels[labelProject]] = append(groups[c.Labels[labelProject]], c)
	}
	var rows []projectRow
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		states, files := map[string]int{}, []string{}
		for _, c := range groups[name] {
			states[string(c.State)]++
			for f := range strings.SplitSeq(c.Labels[labelFiles], ",") {
				if f != "" && !slices.Contains(files, f) {
					files = append(files, f)
				}
			}
		}
		var status []string
		for _, s := range slices.Sorted(maps.Keys(states)) {
			status = append(status, fmt.Sprintf("%s(%d)", s, states[s]))
		}
		if len(files) == 0 {
			files = []string{"N/A"}
		}
		rows = append(rows, projectRow{name, strings.Join(status, ", "), strings.Join(files, ",")})
	}
	return rows, nil
}
