package compose

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/format/compose"
)

// render writes the whole project.
func (t *tool) render(ctx context.Context, c configFlags, services []string) error {
	if c.format == "" {
		c.format = "yaml"
	}
	var (
		text []byte
		err  error
	)
	if c.uninterpolated {
		text, err = t.renderModel(ctx, c, services)
	} else {
		text, err = t.renderProject(ctx, c, services)
	}
	if err != nil {
		return err
	}
	return t.put(c, text, false)
}

func (t *tool) renderProject(ctx context.Context, c configFlags, services []string) ([]byte, error) {
	a, err := t.read(ctx, t.configOptions(c, services))
	if err != nil {
		return nil, err
	}
	p := a.Project
	if c.digests {
		if p, err = p.WithImagesResolved(t.digestOf(ctx)); err != nil {
			return nil, err
		}
	}
	if !c.unchecked {
		if err := p.CheckContainerNameUnicity(); err != nil {
			return nil, err
		}
	}
	if c.lock {
		t.warnHooks(p)
		p = imagesOnly(p)
	}
	return compose.Write(p, c.format)
}

func (t *tool) warnHooks(p *types.Project) {
	for _, name := range p.ServiceNames() {
		if slices.ContainsFunc(p.Services[name].PreStart, func(h types.PreStartHook) bool { return h.Image != "" }) {
			t.warn("%s", name+say(": the images of its pre_start hooks cannot be pinned by an override; use the output of --resolve-image-digests whole",
				": las imágenes de sus pre_start no se pueden fijar así; use la salida completa de --resolve-image-digests"))
		}
	}
}

// imagesOnly leaves of a project the images it names.
func imagesOnly(p *types.Project) *types.Project {
	only := func(s types.ContainerSpec) (out types.ContainerSpec) {
		out.Image = s.Image
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeImage {
				out.Volumes = append(out.Volumes, v)
			}
		}
		return out
	}
	out := &types.Project{Services: types.Services{}}
	for name, s := range p.Services {
		out.Services[name] = types.ServiceConfig{ContainerSpec: only(s.ContainerSpec)}
	}
	for name, j := range p.Jobs {
		if out.Jobs == nil {
			out.Jobs = types.Jobs{}
		}
		out.Jobs[name] = types.JobConfig{ContainerSpec: only(j.ContainerSpec)}
	}
	return out
}

// renderModel writes the files put together, with their variables.
func (t *tool) renderModel(ctx context.Context, c configFlags, services []string) ([]byte, error) {
	if len(services) > 0 {
		t.warn("%s", say("with --no-interpolate all services are written", "con --no-interpolate se escriben todos los servicios"))
	}
	model, warnings, err := compose.LoadModel(ctx, t.configOptions(c, nil))
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		t.warn("%s", w)
	}
	if c.digests {
		pin := t.pinned(ctx)
		for _, section := range []string{"services", "jobs"} {
			entries, _ := model[section].(map[string]any)
			for _, entry := range entries {
				if m, ok := entry.(map[string]any); ok {
					if err := pinEntry(m, pin, c.lock); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	if c.lock {
		maps.DeleteFunc(model, func(key string, _ any) bool { return key != "services" && key != "jobs" })
	}
	return compose.WriteModel(model, c.format)
}

// pinEntry pins the images of one service or job; lock drops all else.
func pinEntry(m map[string]any, pin func(string) (string, error), lock bool) error {
	at := func(in map[string]any, key string) error {
		image, ok := in[key].(string)
		if !ok {
			return nil
		}
		pinned, err := pin(image)
		in[key] = pinned
		return err
	}
	if err := at(m, "image"); err != nil {
		return err
	}
	hooks, _ := m["pre_start"].([]any)
	for _, h := range hooks {
		if hook, ok := h.(map[string]any); ok {
			if err := at(hook, "image"); err != nil {
				return err
			}
		}
	}
	var images []any
	volumes, _ := m["volumes"].([]any)
	for _, v := range volumes {
		if volume, ok := v.(map[string]any); ok && volume["type"] == types.VolumeTypeImage {
			if err := at(volume, "source"); err != nil {
				return err
			}
			images = append(images, volume)
		}
	}
	if lock {
		maps.DeleteFunc(m, func(key string, _ any) bool { return key != "image" })
		if len(images) > 0 {
			m["volumes"] = images
		}
	}
	return nil
}

// pinned adds its digest to an image's name.
func (t *tool) pinned(ctx context.Context) func(string) (string, error) {
	resolve := t.digestOf(ctx)
	return func(image string) (string, error) {
		p := &types.Project{Services: types.Services{"x": {ContainerSpec: types.ContainerSpec{Image: image}}}}
		p, err := p.WithImagesResolved(resolve)
		if err != nil {
			return "", err
		}
		return p.Services["x"].Image, nil
	}
}

// digestOf asks the registries, through the daemon, what a name means now.
func (t *tool) digestOf(ctx context.Context) func(reference.Named) (digest.Digest, error) {
	return func(named reference.Named) (digest.Digest, error) {
		auth, err := encodedAuth(t.docker.ConfigFile(), named)
		if err != nil {
			return "", err
		}
		found, err := t.docker.Client().DistributionInspect(ctx, named.String(), client.DistributionInspectOptions{EncodedRegistryAuth: auth})
		if err != nil {
			return "", fmt.Errorf("resolve the digest of %s: %w", reference.FamiliarString(named), err)
		}
		return found.Descriptor.Digest, nil
	}
}

func encodedAuth(file *configfile.ConfigFile, named reference.Named) (string, error) {
	host := reference.Domain(named)
	if host == "docker.io" {
		host = "https://index.docker.io/v1/"
	}
	auth, err := file.GetAuthConfig(host)
	if err != nil {
		return "", err
	}
	return authconfig.Encode(registry.AuthConfig{Username: auth.Username, Password: auth.Password, Auth: auth.Auth,
		ServerAddress: auth.ServerAddress, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken})
}
