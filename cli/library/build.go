package library

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli/command/completion"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/library/maker"
	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/debian"
	"github.com/berth-project/berth/format/recipe"
)

func (n *noun) build() *cobra.Command {
	var o maker.Options
	var format string
	var all bool
	var lock, writeLock string
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] NAME [NAME...]",
		Short: locale.Say("Make official images in the engine", "Hacer imágenes oficiales en el motor"),
		Long: locale.Say(`Make official images in the engine, and those they stand on.

An image that is there and was made from the same packages and recipe is left
alone. SOURCE_DATE_EPOCH sets the time of the files that a build makes; it is
the time of the newest package otherwise.`,
			`Hacer imágenes oficiales en el motor, y aquellas en que se apoyan.

Una imagen que ya está y se hizo con los mismos paquetes y receta no se toca.
SOURCE_DATE_EPOCH fija la hora de los archivos que crea; si no está, es la del
paquete más reciente.`),
		Example:           "  berth library build postgres redis\n  berth library build --all\n  berth library build --offline nginx\n  berth library build --write-lock nginx.lock nginx\n  berth library build --lock nginx.lock nginx\n  berth library build --mirror http://snapshot.debian.org/archive/debian/20261121T000000Z nginx",
		ValidArgsFunction: n.completeNames(0),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := n.chosen(args, all)
		if err != nil {
			return err
		}
		if lock != "" {
			if o.Locked, err = readLock(lock); err != nil {
				return err
			}
		}
		m, err := n.maker(cmd.Context(), n.docker.Client(), o)
		if err != nil {
			return err
		}
		defer m.Close()
		if writeLock != "" {
			if err := n.writeLock(m, writeLock, list); err != nil {
				return err
			}
		}
		var made []*maker.Result
		t := tabwriter.NewWriter(n.docker.Out(), 0, 0, 3, ' ', 0)
		for _, r := range list {
			begun := time.Now()
			x, err := m.Make(cmd.Context(), r.Name)
			if err != nil {
				_ = t.Flush()
				return err
			}
			made = append(made, x)
			if format == "table" {
				state := locale.Say("up to date", "al día")
				if x.Fresh {
					state = fmt.Sprintf(locale.Say("made in %.1f s", "hecha en %.1f s"), time.Since(begun).Seconds())
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", x.Tags[0], short(x.ID), mb(float64(x.Size)/1e6), state)
			}
		}
		if format == "json" {
			return writeJSON(n.docker.Out(), made)
		}
		return t.Flush()
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, locale.Say("Make all images", "Hacer todas las imágenes"))
	f.BoolVar(&o.Force, "force", false, locale.Say("Make images that are up to date, too", "Hacer también las que están al día"))
	f.BoolVar(&o.Replace, "replace", false, locale.Say("Take names from images that are not of the library", "Tomar nombres de imágenes ajenas a la biblioteca"))
	f.StringVar(&lock, "lock", "", locale.Say("Use the package versions of this file instead of the mirror's newest", "Usar las versiones de paquetes de este archivo en vez de las últimas de la réplica"))
	f.StringVar(&writeLock, "write-lock", "", locale.Say("Write the package versions that are used to this file", "Escribir en este archivo las versiones de paquetes usadas"))
	_ = cmd.RegisterFlagCompletionFunc("lock", completion.FileNames())
	_ = cmd.RegisterFlagCompletionFunc("write-lock", completion.FileNames())
	n.mirrorFlags(cmd)
	n.formatFlag(cmd, &format)
	return cmd
}

// maxLock bounds a lock file, in bytes.
const maxLock = 16 << 20

func readLock(name string) ([]*debian.Package, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list := []*debian.Package{}
	if err := json.NewDecoder(io.LimitReader(f, maxLock)).Decode(&list); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i, p := range list {
		if p == nil {
			return nil, fmt.Errorf("%s: package %d is empty", name, i)
		}
	}
	return list, nil
}

func (n *noun) writeLock(m *maker.Maker, name string, list []*recipe.Recipe) error {
	var names []string
	for _, r := range list {
		names = append(names, r.Name)
	}
	packages, err := m.Lock(names...)
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := writeJSON(f, packages); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func (n *noun) fetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fetch [OPTIONS] [NAME...]",
		Short: locale.Say("Fetch the packages of official images, to make them without a network later", "Descargar los paquetes de imágenes oficiales, para hacerlas luego sin red"),
		Long: locale.Say("Fetch the packages of official images (all where none is named) into the cache.\n'berth library build --offline' then needs no network; the folder may be carried\nto another machine.",
			"Descargar a la caché los paquetes de imágenes oficiales (todas si no se nombra\nninguna). Después 'berth library build --offline' no necesita red; la carpeta puede\nllevarse a otra máquina."),
		Example:           "  berth library fetch\n  berth library fetch --cache /media/usb/library postgres",
		ValidArgsFunction: n.completeNames(0),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := n.named(args)
		if err != nil {
			return err
		}
		m, err := n.maker(cmd.Context(), nil, maker.Options{})
		if err != nil {
			return err
		}
		defer m.Close()
		for _, r := range list {
			if err := m.Fetch(cmd.Context(), r.Name); err != nil {
				return err
			}
		}
		return nil
	}
	n.mirrorFlags(cmd)
	return cmd
}
