package build

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/completion"
	units "github.com/docker/go-units"
	mobyclient "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/build"
)

// Cache gives the command `berth builder cache`.
func Cache(docker command.Cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: say("Manage cache mounts (RUN --mount=type=cache)", "Gestionar los montajes de caché (RUN --mount=type=cache)"),
		Long: say("Cache mounts are the folders that steps of builds keep for one another: RUN --mount=type=cache,target=/root/.npm.\nLook at them, carry them to another machine, or fill them before the first build.",
			"Los montajes de caché son las carpetas que los pasos de las construcciones se guardan entre sí: RUN --mount=type=cache,target=/root/.npm.\nMírelos, llévelos a otra máquina o llénelos antes de la primera construcción."),
		Example: `  berth builder cache ls
  berth builder cache export -o cache.tar npm /root/.cache/go-build
  berth builder cache import cache.tar`,
		Args: cli.NoArgs,
		RunE: command.ShowHelp(docker.Err()),
	}
	cmd.AddCommand(listMounts(docker), exportMounts(docker), importMounts(docker))
	for _, c := range append(cmd.Commands(), cmd) {
		c.DisableFlagsInUseLine = true
	}
	return cmd
}

// explain words a failure of the native API.
func explain(ctx context.Context, docker command.Cli, err error) error {
	var failed *url.Error
	switch {
	case errors.Is(err, remote.ErrNoBerth):
		return errors.New(say("the daemon knows nothing of cache mounts: it is not Berth's, or older than this program", "el demonio no sabe de montajes de caché: no es de Berth, o es más viejo que este programa"))
	case errors.As(err, &failed):
		if _, down := docker.Client().Ping(ctx, mobyclient.PingOptions{}); down != nil {
			return down // it says how to start the daemon
		}
		return failed.Err
	}
	return err
}

func native(docker command.Cli) *remote.Client { return remote.New(docker.Client().Dialer()) }

// mounts lists cache mounts in the order of their ids.
func mounts(ctx context.Context, docker command.Cli) ([]build.CacheMount, error) {
	list, err := native(docker).CacheMounts(ctx)
	sortMounts(list)
	return list, explain(ctx, docker, err)
}

func sortMounts(list []build.CacheMount) {
	slices.SortFunc(list, func(a, b build.CacheMount) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Record, b.Record))
	})
}

func listMounts(docker command.Cli) *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"},
		Short:             say("List cache mounts", "Listar los montajes de caché"),
		Example:           "  berth builder cache ls\n  berth builder cache ls --format json",
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf(say("unknown format %q: use table or json", "formato desconocido %q: use table o json"), format)
			}
			list, err := mounts(cmd.Context(), docker)
			if err != nil {
				return err
			}
			return show(docker.Out(), list, format, quiet)
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", say("How it is written: table, json", "Cómo se escribe: table, json"))
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, say("Only ids", "Solo los identificadores"))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func show(out io.Writer, list []build.CacheMount, format string, quiet bool) error {
	if quiet {
		for _, m := range list {
			fmt.Fprintln(out, m.ID)
		}
		return nil
	}
	if format == "json" {
		if list == nil {
			list = []build.CacheMount{}
		}
		e := json.NewEncoder(out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, say("ID\tTARGET\tSIZE\tLAST USED\tIN USE\tSHARED\tRECORD", "ID\tDESTINO\tTAMAÑO\tÚLTIMO USO\tEN USO\tCOMPARTIDO\tREGISTRO"))
	for _, m := range list {
		used := say("never", "nunca")
		if m.LastUsed != nil {
			used = say(units.HumanDuration(time.Since(*m.LastUsed))+" ago", "hace "+units.HumanDuration(time.Since(*m.LastUsed)))
		}
		size := units.HumanSize(float64(m.Size))
		if m.InUse {
			size = say("changing", "cambiando")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.ID, m.Target, size, used, yes(m.InUse), yes(m.Shared), m.Record)
	}
	return t.Flush()
}

func yes(b bool) string {
	if b {
		return say("yes", "sí")
	}
	return "no"
}

// completeMounts offers ids.
func completeMounts(docker command.Cli) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		list, err := mounts(cmd.Context(), docker)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var ids []string
		for _, m := range list {
			if !slices.Contains(args, m.ID) {
				ids = append(ids, m.ID)
			}
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

func exportMounts(docker command.Cli) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export [OPTIONS] [ID...]",
		Short: say("Write cache mounts into an archive", "Escribir montajes de caché en un archivo tar"),
		Long: say("Write cache mounts into an archive: those of the ids (or records) that are given, otherwise all.\nA mount that a build is using is refused; a build that wants one waits while it is copied.",
			"Escribir montajes de caché en un archivo tar: los de los identificadores (o registros) dados; si no, todos.\nUno que una construcción usa se rechaza; una construcción que quiera uno espera mientras se copia."),
		Example: `  berth builder cache export -o cache.tar
  berth builder cache export npm | zstd > npm.tar.zst
  berth builder cache export npm | berth -H ssh://other builder cache import -`,
		ValidArgsFunction: completeMounts(docker),
		RunE: func(cmd *cobra.Command, ids []string) error {
			if file == "" && docker.Out().IsTerminal() {
				return errors.New(say("an archive is not written to a terminal: use -o FILE, or redirect the output", "un archivo tar no se escribe en un terminal: use -o ARCHIVO o redirija la salida"))
			}
			archive, err := native(docker).ExportMounts(cmd.Context(), ids)
			if err != nil {
				return explain(cmd.Context(), docker, err)
			}
			defer archive.Close()
			if file == "" || file == "-" {
				_, err = io.Copy(docker.Out(), archive)
			} else {
				err = write(file, archive)
			}
			if archive.Skipped > 0 && err == nil {
				fmt.Fprintf(docker.Err(), say("%d sockets, pipes or devices are not in the archive\n", "%d sockets, tuberías o dispositivos no están en el archivo\n"), archive.Skipped)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", say("File to write (default: the output)", "Archivo en que escribir (por defecto, la salida)"))
	_ = cmd.RegisterFlagCompletionFunc("output", completion.FileNames())
	return cmd
}

// write puts a whole stream into a file, or leaves the file as it was.
func write(file string, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".berth-cache-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func importMounts(docker command.Cli) *cobra.Command {
	var o build.MountImport
	cmd := &cobra.Command{
		Use:   "import [OPTIONS] FILE | -",
		Short: say("Make cache mounts of an archive", "Crear montajes de caché a partir de un archivo tar"),
		Long: say("Make cache mounts of an archive that export has written, or of any tar of files with --id: the next build that mounts the id finds them there.\ngzip, bzip2, xz and zstd are undone. All mounts of the archive are made, or none.",
			"Crear montajes de caché a partir de un archivo que export ha escrito, o de cualquier tar de ficheros con --id: la próxima construcción que monte ese identificador los encuentra ahí.\nSe descomprimen gzip, bzip2, xz y zstd. Se crean todos los montajes del archivo, o ninguno."),
		Example: `  berth builder cache import cache.tar
  berth builder cache import --replace cache.tar.gz
  tar -C ~/.m2 -c . | berth builder cache import --id /root/.m2 -`,
		Args:              cli.ExactArgs(1),
		ValidArgsFunction: completion.FileNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := io.Reader(docker.In())
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			list, err := native(docker).ImportMounts(cmd.Context(), in, o)
			if err != nil {
				return explain(cmd.Context(), docker, err)
			}
			sortMounts(list)
			for _, m := range list {
				fmt.Fprintf(docker.Out(), say("Imported %s (%s)\n", "Importado %s (%s)\n"), m.ID, units.HumanSize(float64(m.Size)))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.ID, "id", "", say("Id of the one mount in the archive: what the Dockerfile says as id=, otherwise the target", "Identificador del único montaje del archivo: lo que el Dockerfile dice con id=; si no, el destino"))
	cmd.Flags().BoolVar(&o.Replace, "replace", false, say("Replace mounts that are here under the same ids", "Sustituir los montajes que ya hay con los mismos identificadores"))
	_ = cmd.RegisterFlagCompletionFunc("id", completeMounts(docker))
	return cmd
}
