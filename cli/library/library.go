// Package library is the command `berth library`: the official images, made
// from Debian's packages on this machine. It talks to the engine over its API,
// to a Debian mirror, and needs no builder and no registry.
package library

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/completion"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/library/maker"
	"github.com/berth-project/berth/cli/library/mirror"
	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/recipe"
	"github.com/berth-project/berth/lib/prose"
	recipes "github.com/berth-project/berth/library"
)

// suite is the release of Debian that the recipes are written for.
const suite = "trixie"

// noun is what all commands of the noun share.
type noun struct {
	docker command.Cli
	o      mirror.Options
	dir    string // recipes on disk instead of those in the program
}

// New gives the command.
func New(docker command.Cli) *cobra.Command {
	n := &noun{docker: docker}
	cmd := &cobra.Command{
		Use:   "library COMMAND",
		Short: locale.Say("Official images, made here from Debian's packages", "Imágenes oficiales, hechas aquí con paquetes de Debian"),
		Long: locale.Say(`Official images, made here from Debian's packages.

No registry is asked: packages come from a Debian mirror, their signatures are
checked, and the engine installs them in a container without a network. The
same package versions give the same image, digest for digest.`,
			`Imágenes oficiales, hechas aquí con paquetes de Debian.

No se consulta ningún registro: los paquetes vienen de una réplica de Debian, se
comprueban sus firmas, y el motor los instala en un contenedor sin red. Las
mismas versiones de paquetes dan la misma imagen, con el mismo digest.`),
		Example: "  berth library ls\n  berth library build postgres redis nginx\n  berth run -d -e POSTGRES_PASSWORD=secret postgres",
		Args:    cli.NoArgs,
		RunE:    command.ShowHelp(docker.Err()),
	}
	cmd.AddCommand(n.ls(), n.show(), n.build(), n.fetch(), n.test())
	cmd.PersistentFlags().StringVar(&n.dir, "recipes", "", locale.Say("Folder of recipes to use instead of the program's own", "Carpeta de recetas en lugar de las del programa"))
	_ = cmd.MarkPersistentFlagDirname("recipes")
	for _, c := range append(cmd.Commands(), cmd) {
		c.DisableFlagsInUseLine = true
	}
	return cmd
}

// mirrorFlags adds the flags that say where packages come from.
func (n *noun) mirrorFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&n.o.Main, "mirror", "", locale.Say("Address of a Debian mirror (default: as this host's apt has it)", "Dirección de una réplica de Debian (por omisión, la de apt en esta máquina)"))
	f.StringVar(&n.o.Security, "security-mirror", "", locale.Say(`Address of Debian's security archive, or "none"`, `Dirección del archivo de seguridad de Debian, o "none"`))
	f.StringVar(&n.o.Suite, "suite", suite, locale.Say("Release of Debian", "Versión de Debian"))
	f.StringVar(&n.o.Keyring, "keyring", mirror.DefaultKeyring, locale.Say("Keys that may sign the mirror's index", "Claves que pueden firmar el índice de la réplica"))
	f.StringVar(&n.o.Cache, "cache", "", locale.Say("Folder of fetched packages (default: berth/library in the user's cache)", "Carpeta de paquetes descargados (por omisión, berth/library en la caché del usuario)"))
	f.BoolVar(&n.o.Offline, "offline", false, locale.Say("Use fetched packages only", "Usar solo paquetes ya descargados"))
	_ = cmd.RegisterFlagCompletionFunc("keyring", completion.FileNames())
	_ = cmd.MarkFlagDirname("cache")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return advise(run(cmd, args)) }
}

// advise adds to an error of a mirror or a cache what to do next.
func advise(err error) error {
	next := ""
	switch {
	case errors.Is(err, mirror.ErrOffline):
		next = locale.Say("Bring the packages along first, where there is a network: berth library fetch (--cache FOLDER puts them on a disk to carry).",
			"Traiga antes los paquetes, donde haya red: berth library fetch (con --cache CARPETA quedan en un disco que se puede llevar).")
	case errors.Is(err, mirror.ErrNoAnswer):
		next = locale.Say("Name another mirror with --mirror ADDRESS, or make images of packages that were fetched before with --offline.",
			"Nombre otra réplica con --mirror DIRECCIÓN, o haga imágenes con paquetes descargados antes con --offline.")
	case errors.Is(err, syscall.ENOSPC):
		next = fmt.Sprintf(locale.Say("Make room there, or use other disks: --cache FOLDER for packages, the variable TMPDIR (now %s) for what is made in between.",
			"Haga sitio ahí o use otros discos: --cache CARPETA para los paquetes, la variable TMPDIR (ahora %s) para lo que se hace entretanto."), os.TempDir())
	default:
		return err
	}
	return fmt.Errorf("%w\n%s", err, next)
}

// Has tells whether the program brings a recipe for an image of this name.
func Has(name string) bool {
	list, err := new(noun).named([]string{name})
	return err == nil && len(list) == 1
}

// completeNames offers the names of images, at most so many (0: any number).
func (n *noun) completeNames(most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := n.named(nil)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, r := range list {
			for _, name := range append([]string{r.Name}, r.Manifest.Aliases...) {
				if !slices.Contains(args, name) {
					names = append(names, cobra.CompletionWithDesc(name, locale.Say(r.Manifest.Description.English, r.Manifest.Description.Spanish)))
				}
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func (n *noun) files() fs.FS {
	if n.dir != "" {
		return os.DirFS(n.dir)
	}
	return recipes.Files
}

// named gives recipes by name or alias, all where none is named.
func (n *noun) named(names []string) ([]*recipe.Recipe, error) {
	all, err := recipe.Names(n.files())
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf(locale.Say("no recipes in %s: each is a folder with a Dockerfile and a manifest.json", "no hay recetas en %s: cada una es una carpeta con un Dockerfile y un manifest.json"), n.dir)
	}
	var list []*recipe.Recipe
	alias := map[string]*recipe.Recipe{}
	for _, name := range all {
		r, err := recipe.Read(n.files(), name)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
		for _, a := range append(r.Manifest.Aliases, name) {
			alias[a] = r
		}
	}
	if len(names) == 0 {
		return list, nil
	}
	list = nil
	for _, name := range names {
		r := alias[name]
		if r == nil {
			return nil, unknown(name, alias)
		}
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list, nil
}

// unknown words that the library has no image of a name.
func unknown(name string, known map[string]*recipe.Recipe) error {
	if short, _, tagged := strings.Cut(name, ":"); tagged && known[short] != nil {
		return fmt.Errorf(locale.Say("%s: the version is the one that Debian has: leave the tag out (berth library build %s)", "%s: la versión es la que tiene Debian: omita la etiqueta (berth library build %s)"), name, short)
	}
	if near := prose.Nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
		return fmt.Errorf(locale.Say("the library has no image %q; did you mean %s?", "la biblioteca no tiene la imagen %q; ¿quería decir %s?"), name, near)
	}
	return fmt.Errorf(locale.Say("the library has no image %q: see 'berth library ls'", "la biblioteca no tiene la imagen %q: vea 'berth library ls'"), name)
}

// chosen gives the images that a command line asks for: by name, or all.
func (n *noun) chosen(args []string, all bool) ([]*recipe.Recipe, error) {
	switch {
	case all && len(args) > 0:
		return nil, errors.New(locale.Say("names and --all exclude each other", "los nombres y --all se excluyen"))
	case !all && len(args) == 0:
		return nil, errors.New(locale.Say("name the images (berth library ls shows them), or give --all", "nombre las imágenes (berth library ls las muestra), o use --all"))
	}
	return n.named(args)
}

// maker opens the mirror; engine may be nil when packages are only fetched.
func (n *noun) maker(ctx context.Context, engine client.APIClient, o maker.Options) (*maker.Maker, error) {
	m := n.o
	if m.Cache == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("%w: name a folder with --cache", err)
		}
		m.Cache = filepath.Join(cache, "berth", "library")
	}
	m.Architecture = mirror.DebianArchitecture(runtime.GOARCH)
	if engine != nil {
		info, err := engine.ServerVersion(ctx, client.ServerVersionOptions{})
		if err != nil {
			return nil, err
		}
		if m.Architecture = mirror.DebianArchitecture(info.Arch); m.Architecture == "" {
			return nil, fmt.Errorf("the engine's architecture %s is not one of Debian's", info.Arch)
		}
	}
	source, err := mirror.New(m)
	if err != nil {
		return nil, err
	}
	o.Library, o.Engine, o.Mirror, o.Say = n.files(), engine, source, n.progress()
	made, err := maker.New(ctx, o)
	if err != nil {
		_ = source.Close()
	}
	return made, err
}

// progress writes one line for each step, with the time since the beginning.
func (n *noun) progress() func(maker.Report) {
	begun := time.Now()
	words := map[string]string{
		"index": locale.Say("read the index of", "leer el índice de"), "fetch": locale.Say("fetch", "descargar"), "unpack": locale.Say("unpack", "desempaquetar"),
		"install": locale.Say("install", "instalar"), "run": locale.Say("run the recipe's commands", "ejecutar las órdenes de la receta"), "pack": locale.Say("pack", "empaquetar"), "check": locale.Say("check", "comprobar"),
	}
	return func(r maker.Report) {
		line := fmt.Sprintf("%6.1fs  %-12s %s %s", time.Since(begun).Seconds(), r.Image, words[r.Step], r.Detail)
		fmt.Fprintln(n.docker.Err(), strings.TrimRight(line, " "))
	}
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// formatFlag adds --format, which takes table and json.
func (n *noun) formatFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVar(format, "format", "table", locale.Say(`Output format ("table" or "json")`, `Formato de salida ("table" o "json")`))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *format != "table" && *format != "json" {
			return fmt.Errorf(locale.Say("unknown format %q: use table or json", "formato %q desconocido: use table o json"), *format)
		}
		return run(cmd, args)
	}
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}
