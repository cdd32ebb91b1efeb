package library

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/library/maker"
	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/recipe"
	"github.com/berth-project/berth/lib/prose"
)

// row is one image in the list.
type row struct {
	Name        string   `json:"name"`
	Aliases     []string `json:"aliases,omitempty"`
	ID          string   `json:"id,omitempty"` // of the image in the engine
	Version     string   `json:"version,omitempty"`
	Size        int64    `json:"size,omitempty"` // in bytes
	HubImage    string   `json:"hub_image,omitempty"`
	HubMB       float64  `json:"hub_mb,omitempty"`
	Description string   `json:"description"`
}

func (n *noun) ls() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   locale.Say("List the official images", "Listar las imágenes oficiales"),
		Long: locale.Say("List the official images: those in the engine with their size, beside what\nDocker Hub's image of the name weighs where that is known.",
			"Listar las imágenes oficiales: las que tiene el motor con su tamaño, junto a\nlo que pesa la imagen de ese nombre en Docker Hub si se conoce."),
		Example:           "  berth library ls\n  berth library ls --format json",
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := n.named(nil)
		if err != nil {
			return err
		}
		rows := make([]row, 0, len(list))
		silent := false // no engine answers
		for _, r := range list {
			x := n.row(r)
			if !silent {
				if err := n.find(cmd.Context(), &x); err != nil {
					if !client.IsErrConnectionFailed(err) {
						return err
					}
					silent = true
				}
			}
			rows = append(rows, x)
		}
		if format == "json" {
			err = writeJSON(n.docker.Out(), rows)
		} else {
			err = n.table(rows)
		}
		if silent {
			fmt.Fprintln(n.docker.Err(), locale.Say("No engine answers: which of these it has is not known. Start one: sudo berthd", "Ningún motor responde: no se sabe cuáles de estas tiene. Inicie uno: sudo berthd"))
		}
		return err
	}
	n.formatFlag(cmd, &format)
	return cmd
}

// find adds what the engine has of an image.
func (n *noun) find(ctx context.Context, x *row) error {
	found, err := n.docker.Client().ImageInspect(ctx, x.Name+":latest")
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil && found.Config != nil && found.Config.Labels[maker.LabelInputs] != "" {
		x.ID, x.Size, x.Version = found.ID, found.Size, found.Config.Labels["org.opencontainers.image.version"]
	}
	return err
}

func (n *noun) row(r *recipe.Recipe) row {
	m := r.Manifest
	x := row{Name: r.Name, Aliases: m.Aliases, Description: locale.Say(m.Description.English, m.Description.Spanish)}
	if m.Hub != nil {
		x.HubImage, x.HubMB = m.Hub.Image, m.Hub.MB
	}
	return x
}

func (n *noun) table(rows []row) error {
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, locale.Say("NAME\tVERSION\tIMAGE ID\tSIZE\tON DOCKER HUB\tDESCRIPTION", "NOMBRE\tVERSIÓN\tIMAGEN\tTAMAÑO\tEN DOCKER HUB\tDESCRIPCIÓN"))
	for _, x := range rows {
		size, hub := "", ""
		if x.Size > 0 {
			size = mb(float64(x.Size) / 1e6)
		}
		if x.HubMB > 0 {
			hub = mb(x.HubMB)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", strings.Join(append([]string{x.Name}, x.Aliases...), ", "), x.Version, short(x.ID), size, hub, x.Description)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, width := n.docker.Out().GetTtySize()
	for line := range strings.Lines(text.String()) {
		if width > 0 { // else it is no terminal
			line = prose.Clip(strings.TrimRight(line, "\n"), int(width)) + "\n"
		}
		if _, err := io.WriteString(n.docker.Out(), line); err != nil {
			return err
		}
	}
	return nil
}

func mb(n float64) string {
	switch {
	case n < 0.1:
		return fmt.Sprintf("%.0f kB", n*1e3)
	case n < 10:
		return fmt.Sprintf("%.1f MB", n)
	}
	return fmt.Sprintf("%.0f MB", n)
}
