package compose

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// completeServices offers the services of the file, or, where there is none
// that can be read, those of the project's containers.
func (t *tool) completeServices(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if a, err := t.look(cmd.Context(), nil); err == nil {
		names = append(a.Project.ServiceNames(), a.Project.DisabledServiceNames()...)
	} else if project, err := t.projectName(cmd.Context()); err == nil {
		found, err := t.containers(cmd.Context(), project, selection{stopped: true})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, c := range found {
			names = append(names, c.Labels[labelService])
		}
	}
	return beginning(names, toComplete), cobra.ShellCompDirectiveNoFileComp
}

// completeFlags offers values of the global flags.
func (t *tool) completeFlags(c *cobra.Command) {
	for flag, fn := range map[string]cobra.CompletionFunc{
		"project-name": func(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			rows, err := t.projects(cmd.Context(), true)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, r := range rows {
				names = append(names, r.Name)
			}
			return beginning(names, toComplete), cobra.ShellCompDirectiveNoFileComp
		},
		"profile": func(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			a, err := t.look(cmd.Context(), nil)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return beginning(a.Project.AllServices().GetProfiles(), toComplete), cobra.ShellCompDirectiveNoFileComp
		},
		"project-directory": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		"file": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		"env-file": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		"progress": cobra.FixedCompletions(modes, cobra.ShellCompDirectiveNoFileComp),
		"ansi":     cobra.FixedCompletions([]string{"never", "always", "auto"}, cobra.ShellCompDirectiveNoFileComp),
	} {
		if err := c.RegisterFlagCompletionFunc(flag, fn); err != nil {
			panic(err) // a flag that is not there: seen by any test
		}
	}
}

func beginning(names []string, prefix string) []string {
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
}
