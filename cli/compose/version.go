package compose

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (t *tool) versionCommand() *cobra.Command {
	var (
		format string
		short  bool
	)
	cmd := &cobra.Command{
		Use:     "version [OPTIONS]",
		Short:   say("Show the Docker Compose version information", "Muestra la versión de Docker Compose que esto es"),
		Example: "  berth compose version --short\n  berth compose version --format json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return t.versionOf(format, short) },
		// No file and no daemon is needed to tell it.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format the output. Values: [pretty | json]. (Default: pretty)")
	cmd.Flags().BoolVar(&short, "short", false, "Shows only Compose's version number")
	return cmd
}

func (t *tool) versionOf(format string, short bool) error {
	switch {
	case short:
		fmt.Fprintln(t.docker.Out(), strings.TrimPrefix(Version, "v"))
	case format == "json":
		fmt.Fprintf(t.docker.Out(), "{\"version\":%q}\n", Version)
	case format == "" || format == "pretty":
		fmt.Fprintln(t.docker.Out(), "Docker Compose version", Version)
	default:
		return badFormat(format, "pretty", "json")
	}
	return nil
}
