package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	units "github.com/docker/go-units"
	"github.com/spf13/cobra"

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

// mountsPath of the daemon's native API.
const mountsPath = "/berth/v1/builder/mounts"

// call asks the daemon; the answer's body is closed by the caller.
func call(ctx context.Context, docker command.Cli, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	dial := docker.Client().Dialer()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
	req, err := http.NewRequestWithContext(ctx, method, (&url.URL{Scheme: "http", Host: "berth", Path: path, RawQuery: q.Encode()}).String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	var failed *url.Error
	if errors.As(err, &failed) {
		if _, down := docker.Client().Ping(ctx, pingOptions); down != nil {
			return nil, down // it says how to start the daemon
		}
		return nil, failed.Err
	}
	if err != nil || resp.StatusCode < http.StatusBadRequest {
		return resp, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	var said struct{ Message string }
	if json.Unmarshal(text, &said) != nil || said.Message == "" || strings.HasPrefix(said.Message, "page not found") {
		return nil, errors.New(say("the daemon knows nothing of cache mounts: it is not Berth's, or older than this program", "el demonio no sabe de montajes de caché: no es de Berth, o es más viejo que este programa"))
	}
	return nil, errors.New(said.Message)
}

func mountList(ctx context.Context, docker command.Cli, method, path string, q url.Values, body io.Reader) (list []build.CacheMount, err error) {
	resp, err := call(ctx, docker, method, path, q, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b build.CacheMount) int {
		return strings.Compare(a.ID+"\x00"+a.Record, b.ID+"\x00"+b.Record)
	})
	return list, nil
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
			list, err := mountList(cmd.Context(), docker, http.MethodGet, mountsPath, nil, nil)
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
		list, err := mountList(cmd.Context(), docker, http.MethodGet, mountsPath, nil, nil)
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
			resp, err := call(cmd.Context(), docker, http.MethodGet, mountsPath+"/archive", url.Values{"id": ids}, nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if file == "" || file == "-" {
				_, err = io.Copy(docker.Out(), resp.Body)
			} else {
				err = write(file, resp.Body)
			}
			if n, _ := strconv.Atoi(resp.Header.Get("Berth-Skipped")); n > 0 && err == nil {
				fmt.Fprintf(docker.Err(), say("%d sockets, pipes or devices are not in the archive\n", "%d sockets, tuberías o dispositivos no están en el archivo\n"), n)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", say("File to write (default: the output)", "Archivo en que escribir (por defecto, la salida)"))
	return cmd
}

// write puts a whole stream into a file, or leaves the file as it was.
func write(file string, r io.Reader) error {
	f, err := os.CreateTemp(dirOf(file), ".berth-cache-")
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

func dirOf(file string) string {
	if i := strings.LastIndexByte(file, '/'); i >= 0 {
		return file[:i+1]
	}
	return "."
}

func importMounts(docker command.Cli) *cobra.Command {
	var id string
	var replace bool
	cmd := &cobra.Command{
		Use:   "import [OPTIONS] FILE | -",
		Short: say("Make cache mounts of an archive", "Crear montajes de caché a partir de un archivo tar"),
		Long: say("Make cache mounts of an archive that export has written, or of any tar of files with --id: the next build that mounts the id finds them there.\ngzip, bzip2, xz and zstd are undone. All mounts of the archive are made, or none.",
			"Crear montajes de caché a partir de un archivo que export ha escrito, o de cualquier tar de ficheros con --id: la próxima construcción que monte ese identificador los encuentra ahí.\nSe descomprimen gzip, bzip2, xz y zstd. Se crean todos los montajes del archivo, o ninguno."),
		Example: `  berth builder cache import cache.tar
  berth builder cache import --replace cache.tar.gz
  tar -C ~/.m2 -c . | berth builder cache import --id /root/.m2 -`,
		Args: cli.ExactArgs(1),
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
			q := url.Values{}
			if id != "" {
				q.Set("id", id)
			}
			if replace {
				q.Set("replace", "1")
			}
			list, err := mountList(cmd.Context(), docker, http.MethodPost, mountsPath+"/archive", q, io.NopCloser(in))
			if err != nil {
				return err
			}
			for _, m := range list {
				fmt.Fprintf(docker.Out(), say("Imported %s (%s)\n", "Importado %s (%s)\n"), m.ID, units.HumanSize(float64(m.Size)))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&id, "id", "", say("Id of the one mount in the archive: what the Dockerfile says as id=, otherwise the target", "Identificador del único montaje del archivo: lo que el Dockerfile dice con id=; si no, el destino"))
	cmd.Flags().BoolVar(&replace, "replace", false, say("Replace mounts that are here under the same ids", "Sustituir los montajes que ya hay con los mismos identificadores"))
	_ = cmd.RegisterFlagCompletionFunc("id", completeMounts(docker))
	return cmd
}
