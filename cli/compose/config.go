package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/format/compose"
)

// configFlags are what `config` is asked.
type configFlags struct {
	format, output, hash                                                 string
	quiet, digests, lock                                                 bool
	uninterpolated, unnormalized, relative, unchecked, unresolved        bool
	services, volumes, networks, models, profiles, images, vars, environ bool
}

func (t *tool) configCommand() *cobra.Command {
	var c configFlags
	cmd := &cobra.Command{
		Use:   "config [OPTIONS] [SERVICE...]",
		Short: say("Parse, resolve and render compose file in canonical format", "Lee, resuelve y escribe el archivo en su forma canónica"),
		Long: say("Reads the files as `up` would and writes what they mean together. Files of any age are read; what comes out is of the current format.",
			"Lee los archivos como lo haría `up` y escribe lo que significan juntos, en el formato actual."),
		Example: `  berth compose config
  berth compose config --format json web
  berth compose -f fig.yml config > compose.yaml
  berth compose config --hash '*'`,
		RunE: t.run(func(ctx context.Context, args []string) error { return t.config(ctx, c, args) }),

		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.StringVar(&c.format, "format", "", "Format the output. Values: [yaml | json]")
	f.BoolVar(&c.digests, "resolve-image-digests", false, "Pin image tags to digests")
	f.BoolVar(&c.lock, "lock-image-digests", false, "Produces an override file with image digests")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "Only validate the configuration, don't print anything")
	f.BoolVar(&c.uninterpolated, "no-interpolate", false, "Don't interpolate environment variables")
	f.BoolVar(&c.unnormalized, "no-normalize", false, "Don't normalize compose model")
	f.BoolVar(&c.relative, "no-path-resolution", false, "Don't resolve file paths")
	f.BoolVar(&c.unchecked, "no-consistency", false, "Don't check model consistency - warning: may produce invalid Compose output")
	f.BoolVar(&c.unresolved, "no-env-resolution", false, "Don't resolve service env files")
	f.BoolVar(&c.services, "services", false, "Print the service names, one per line.")
	f.BoolVar(&c.volumes, "volumes", false, "Print the volume names, one per line.")
	f.BoolVar(&c.networks, "networks", false, "Print the network names, one per line.")
	f.BoolVar(&c.models, "models", false, "Print the model names, one per line.")
	f.BoolVar(&c.profiles, "profiles", false, "Print the profile names, one per line.")
	f.BoolVar(&c.images, "images", false, "Print the image names, one per line.")
	f.StringVar(&c.hash, "hash", "", "Print the service config hash, one per line.")
	f.BoolVar(&c.vars, "variables", false, "Print model variables and default values.")
	f.BoolVar(&c.environ, "environment", false, "Print environment used for interpolation.")
	f.StringVarP(&c.output, "output", "o", "", "Save to file (default to stdout)")
	return cmd
}

// config does the first of what the flags ask, in docker compose's order.
func (t *tool) config(ctx context.Context, c configFlags, args []string) error {
	c.digests = c.digests || c.lock
	c.unnormalized = c.unnormalized || t.compatibility
	var list func(*app.App) ([]string, error)
	chosen, resolve := []string(nil), false
	switch {
	case c.services:
		list = func(a *app.App) ([]string, error) { return servicesInOrder(a.Project) }
	case c.volumes:
		list = func(a *app.App) ([]string, error) { return a.Project.VolumeNames(), nil }
	case c.networks:
		list = func(a *app.App) ([]string, error) { return a.Project.NetworkNames(), nil }
	case c.models:
		list = func(a *app.App) ([]string, error) { return modelsOf(a.Project), nil }
	case c.hash != "":
		list = func(a *app.App) ([]string, error) { return hashes(a.Project, c) }
	case c.profiles:
		chosen, resolve = args, true
		list = func(a *app.App) ([]string, error) { return profilesOf(a.Project), nil }
	case c.images:
		chosen, resolve = args, true
		list = func(a *app.App) ([]string, error) { return imageNames(a.Project, t.isCompatible(a.Project)), nil }
	case c.vars:
		return t.printVariables(ctx, c, args)
	case c.environ:
		chosen, resolve = args, true
		list = func(a *app.App) ([]string, error) { return a.Project.Environment.Values(), nil }
	default:
		return t.render(ctx, c, args)
	}
	o := t.configOptions(c, chosen)
	o.KeepEnvFiles = o.KeepEnvFiles || !resolve
	a, err := t.read(ctx, o)
	if err != nil {
		return err
	}
	lines, err := list(a)
	if err != nil {
		return err
	}
	return t.put(c, []byte(strings.Join(append(lines, ""), "\n")), true)
}

func (t *tool) configOptions(c configFlags, services []string) compose.Options {
	o := t.loadOptions(services)
	o.Uninterpolated, o.Unnormalized, o.RelativePaths, o.Unchecked = c.uninterpolated, c.unnormalized, c.relative, c.unchecked
	o.KeepEnvFiles = c.unresolved
	return o
}

// read loads a project and tells its warnings.
func (t *tool) read(ctx context.Context, o compose.Options) (*app.App, error) {
	a, err := compose.Load(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, w := range a.Warnings {
		t.warn("%s", w)
	}
	return a, nil
}

// put writes the output where it was asked for; a list goes to the screen even
// with --output, as docker compose has it.
func (t *tool) put(c configFlags, text []byte, list bool) error {
	if c.quiet {
		return nil
	}
	if c.output != "" && len(text) > 0 && !list {
		return os.WriteFile(c.output, text, 0o666) // less the umask, as for any file a program is told to write
	}
	_, err := t.docker.Out().Write(text)
	return err
}

// servicesInOrder are the names of the services, each after those it depends on.
func servicesInOrder(p *types.Project) (names []string, err error) {
	if len(p.Services) == 0 {
		return nil, nil
	}
	err = p.ForEachService(p.ServiceNames(), func(name string, _ *types.ServiceConfig) error {
		names = append(names, name)
		return nil
	})
	return names, err
}

func modelsOf(p *types.Project) (list []string) {
	for _, name := range p.ModelNames() {
		if m := p.Models[name].Model; m != "" {
			list = append(list, m)
		}
	}
	return list
}

func profilesOf(p *types.Project) []string {
	list := p.AllServices().GetProfiles()
	slices.Sort(list)
	return slices.Compact(list)
}

// imageNames are the images of the services and jobs, with the name that one
// built without a name of its own gets.
func imageNames(p *types.Project, compatible bool) (list []string) {
	between := "-"
	if compatible {
		between = "_"
	}
	add := func(name, image string) string {
		if image == "" {
			image = p.Name + between + name
		}
		list = append(list, image)
		return image
	}
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		own := add(name, s.Image)
		for _, h := range s.PreStart {
			if h.Image != "" && h.Image != own {
				list = append(list, h.Image)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Jobs)) {
		add(name, p.Jobs[name].Image)
	}
	return list
}

// hashes are lines "service hash" of the services that --hash names.
func hashes(p *types.Project, c configFlags) (lines []string, err error) {
	if c.hash != "*" {
		if p, err = p.WithSelectedServices(strings.Split(c.hash, ","), types.IgnoreDependencies); err != nil {
			return nil, err
		}
	}
	platform := p.Environment["DOCKER_DEFAULT_PLATFORM"]
	for name, s := range p.Services {
		if s.Build == nil || platform == "" || s.Platform != "" {
			continue
		}
		if len(s.Build.Platforms) > 0 && !slices.Contains(s.Build.Platforms, platform) {
			return nil, fmt.Errorf("service %q cannot be built for DOCKER_DEFAULT_PLATFORM=%s: build.platforms does not have it", name, platform)
		}
		s.Platform = platform
		p.Services[name] = s
	}
	if !c.unresolved {
		if p, err = p.WithServicesEnvironmentResolved(true); err != nil {
			return nil, err
		}
	}
	for _, name := range p.ServiceNames() {
		hash, err := app.ServiceHash(p.Services[name])
		if err != nil {
			return nil, err
		}
		lines = append(lines, name+" "+hash)
	}
	return lines, nil
}

// printVariables writes the variables of the files and what they are by default.
func (t *tool) printVariables(ctx context.Context, c configFlags, services []string) error {
	if len(services) > 0 {
		t.warn("%s", say("with --variables the variables of all services are written", "con --variables se escriben las variables de todos los servicios"))
	}
	o := t.configOptions(c, nil)
	o.Uninterpolated, o.Unvalidated = true, true
	model, _, err := compose.LoadModel(ctx, o)
	if err != nil {
		return err
	}
	found := template.ExtractVariables(model, template.DefaultPattern)
	switch strings.ToLower(c.format) {
	case "yaml":
		text, err := yaml.Marshal(found)
		if err != nil {
			return err
		}
		return t.put(c, text, true)
	case "json":
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "    ")
		if err := e.Encode(found); err != nil {
			return err
		}
		return t.put(c, append(b.Bytes(), '\n'), true)
	case "", "table", "pretty":
	default:
		return badFormat(c.format, "yaml", "json", "table")
	}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(found)) {
		v := found[name]
		rows = append(rows, []string{name, strconv.FormatBool(v.Required), v.DefaultValue, v.PresenceValue})
	}
	if c.quiet {
		return nil
	}
	return writeTable(t.docker.Out(), []string{"NAME", "REQUIRED", "DEFAULT VALUE", "ALTERNATE VALUE"}, rows)
}
