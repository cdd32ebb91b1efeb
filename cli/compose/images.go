package compose

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/client/pkg/stringid"
	"github.com/spf13/cobra"
)

// imageRow is a line of images.
type imageRow struct {
	ID            string     `json:"ID"`
	ContainerName string     `json:"ContainerName"`
	Repository    string     `json:"Repository"`
	Tag           string     `json:"Tag"`
	Platform      string     `json:"Platform"`
	Size          int64      `json:"Size"`
	Created       *time.Time `json:"Created,omitempty"`
	LastTagTime   time.Time  `json:"LastTagTime,omitzero"`
}

func (t *tool) imagesCommand() *cobra.Command {
	var (
		format string
		quiet  bool
	)
	cmd := &cobra.Command{
		Use:     "images [OPTIONS] [SERVICE...]",
		Short:   say("List images used by the created containers", "Lista las imágenes de los contenedores creados"),
		Example: "  berth compose images\n  berth compose images --format json web",
		RunE: t.run(func(ctx context.Context, args []string) error {
			rows, err := t.images(ctx, args)
			if err != nil {
				return err
			}
			out := t.docker.Out()
			switch {
			case quiet:
				var ids []string
				for _, r := range rows {
					if id := r.ID[strings.IndexByte(r.ID, ':')+1:]; !slices.Contains(ids, id) {
						ids = append(ids, id)
						fmt.Fprintln(out, id)
					}
				}
				return nil
			case format == "json":
				err := writeJSON(out, append([]imageRow{}, rows...))
				fmt.Fprintln(out) // as docker compose ends it
				return err
			case format == "" || format == "table" || format == "pretty":
				var list [][]string
				for _, r := range rows {
					created := "N/A"
					if r.Created != nil {
						created = units.HumanDuration(time.Since(*r.Created)) + " ago"
					}
					list = append(list, []string{r.ContainerName, orNone(r.Repository), orNone(r.Tag), r.Platform, stringid.TruncateID(r.ID),
						units.HumanSizeWithPrecision(float64(r.Size), 3), created})
				}
				return writeTable(out, []string{"CONTAINER", "REPOSITORY", "TAG", "PLATFORM", "IMAGE ID", "SIZE", "CREATED"}, list)
			}
			return badFormat(format, "table", "json")
		}),
		ValidArgsFunction: t.completeServices,
	}
	cmd.Flags().StringVar(&format, "format", "table", "Format the output. Values: [table | json]")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display IDs")
	return cmd
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func (t *tool) images(ctx context.Context, services []string) ([]imageRow, error) {
	project, err := t.projectName(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.mustKnow(ctx, project, services...); err != nil {
		return nil, err
	}
	found, err := t.containers(ctx, project, selection{services: services, stopped: true, oneOff: true})
	if err != nil {
		return nil, err
	}
	rows := make([]imageRow, len(found))
	err = each(ctx, t.limit(), found, func(ctx context.Context, i int, c summary) error {
		r := imageRow{ContainerName: nameOf(c), ID: c.ImageID}
		if ref, err := reference.ParseDockerRef(c.Image); err == nil && !strings.HasPrefix(c.Image, "sha256:") {
			r.Repository = reference.FamiliarName(ref)
			if tagged, ok := ref.(reference.Tagged); ok {
				r.Tag = tagged.Tag()
			}
		}
		img, err := t.docker.Client().ImageInspect(ctx, c.Image)
		if err != nil && !errdefs.IsNotFound(err) { // its name may have moved to another, or be gone
			return err
		}
		if err == nil {
			r.ID, r.Size, r.LastTagTime = img.ID, img.Size, img.Metadata.LastTagTime
			r.Platform = platforms.Format(platforms.Platform{OS: img.Os, Architecture: img.Architecture, OSVersion: img.OsVersion, Variant: img.Variant})
			if created, err := time.Parse(time.RFC3339Nano, img.Created); err == nil {
				r.Created = &created
			}
		}
		rows[i] = r
		return nil
	})
	return rows, err
}
