package compose

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (t *tool) exportCommand() *cobra.Command {
	var (
		output string
		index  int
	)
	cmd := &cobra.Command{
		Use:   "export [OPTIONS] SERVICE",
		Short: say("Export a service container's filesystem as a tar archive", "Exporta los ficheros de un contenedor de un servicio como archivo tar"),
		Args:  cobra.ExactArgs(1),
		RunE: t.run(func(ctx context.Context, args []string) error {
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			c, err := t.one(ctx, project, args[0], index, true, false)
			if err != nil {
				return err
			}
			if output == "" && t.docker.Out().IsTerminal() {
				return errors.New("output option is required when exporting to terminal: " + say("use -o FILE or redirect", "use -o FICHERO o redirija la salida"))
			}
			id := nameOf(c)
			t.screen.begin("export")
			t.screen.on(event{id: id, text: "Exporting"})
			if !t.dryRun {
				err = t.export(ctx, c.ID, output)
			}
			if err != nil {
				t.screen.on(event{id: id, state: failed, text: "Error", details: err.Error()})
			} else {
				t.screen.on(event{id: id, state: done, text: "Exported"})
			}
			t.screen.end(err == nil)
			return err
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.IntVar(&index, "index", 0, "index of the container if service has multiple replicas.")
	f.StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

// export writes to a file that appears under its name only when it is whole.
func (t *tool) export(ctx context.Context, id, output string) error {
	r, err := t.docker.Client().ContainerExport(ctx, id, client.ContainerExportOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	if output == "" {
		_, err = io.Copy(t.docker.Out(), r)
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(output), ".export-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	if _, err = io.Copy(f, r); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), output)
}
