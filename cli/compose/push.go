package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (t *tool) pushCommand() *cobra.Command {
	var quietly, deps, ignore bool
	cmd := &cobra.Command{
		Use:     "push [OPTIONS] [SERVICE...]",
		Short:   say("Push service images", "Sube las imágenes de los servicios"),
		Example: "  berth compose push\n  berth compose push --ignore-push-failures web",
		RunE: t.run(func(ctx context.Context, args []string) error {
			if quietly {
				t.screen = quiet{}
			}
			a, err := t.load(ctx, args)
			if err != nil {
				return err
			}
			var names []string
			for _, s := range a.Project.Services {
				if s.Build == nil || len(args) > 0 && !deps && !slices.Contains(args, s.Name) {
					continue
				}
				if s.Image == "" {
					t.screen.on(event{id: s.Name, state: warned, text: "Skipped: service has no image name"})
					continue
				}
				names = append(names, s.Image)
				for _, tag := range s.Build.Tags {
					names = append(names, tag)
				}
			}
			slices.Sort(names)
			t.screen.begin("push")
			err = each(ctx, min(t.limit(), 4), slices.Compact(names), func(ctx context.Context, _ int, image string) error {
				return t.push(ctx, image, ignore)
			})
			t.screen.end(err == nil)
			return err
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVar(&ignore, "ignore-push-failures", false, "Push what it can and ignores images with push failures")
	f.BoolVar(&deps, "include-deps", false, "Also push images of services declared as dependencies")
	f.BoolVarP(&quietly, "quiet", "q", false, "Push without printing progress information")
	return cmd
}

func (t *tool) push(ctx context.Context, image string, ignore bool) error {
	id := "Image " + image
	t.screen.on(event{id: id, text: "Pushing"})
	if !t.dryRun {
		if err := t.pushImage(ctx, id, image); err != nil {
			t.screen.on(event{id: id, state: failed, text: "Error", details: err.Error()})
			if ignore && ctx.Err() == nil {
				return nil
			}
			return fmt.Errorf("push %s: %w", image, err)
		}
	}
	t.screen.on(event{id: id, state: done, text: "Pushed"})
	return nil
}

func (t *tool) pushImage(ctx context.Context, id, image string) error {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return err
	}
	auth, err := t.docker.ConfigFile().GetAuthConfig(authKey(reference.Domain(ref)))
	if err != nil {
		return fmt.Errorf("credentials of %s: %w", reference.Domain(ref), err)
	}
	encoded, err := authconfig.Encode(registry.AuthConfig{
		Username: auth.Username, Password: auth.Password, ServerAddress: auth.ServerAddress, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	})
	if err != nil {
		return err
	}
	r, err := t.docker.Client().ImagePush(ctx, image, client.ImagePushOptions{RegistryAuth: encoded})
	if err != nil {
		return err
	}
	defer r.Close()
	for dec := json.NewDecoder(r); ; {
		var m struct {
			ID, Status string
			Detail     struct{ Current, Total int64 } `json:"progressDetail"`
			Error      struct{ Message string }       `json:"errorDetail"`
		}
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if m.Error.Message != "" {
			return errors.New(m.Error.Message)
		}
		if m.ID != "" {
			t.screen.on(event{id: m.ID, parent: id, text: m.Status, current: m.Detail.Current, total: m.Detail.Total})
		}
	}
}
