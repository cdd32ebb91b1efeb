package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	cliopts "github.com/docker/cli/opts"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/build"
	"github.com/berth-project/berth/core/app"
)

type buildOptions struct {
	push, quiet, pull, noCache, deps, print, check bool
	toRun                                          bool // an image that runs here is wanted, of one platform
	args                                           []string
	ssh, builder, provenance, sbom                 string
	memory                                         cliopts.MemBytes
	out                                            io.Writer // where the builder's progress goes; nil is the standard output
}

func (t *tool) buildCommand() *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] [SERVICE...]",
		Short: say("Build or rebuild services", "Construye las imágenes de los servicios"),
		Example: `  berth compose build
  berth compose build --no-cache --build-arg VERSION=2 web`,
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		if cmd.Flags().Changed("ssh") && o.ssh == "" {
			o.ssh = "default"
		}
		if cmd.Flags().Changed("progress") {
			fmt.Fprintln(t.docker.Err(), "--progress is a global compose flag, better use `docker compose --progress xx build ...")
		}
		return t.build(ctx, o, args)
	})
	f := cmd.Flags()
	f.BoolVar(&o.push, "push", false, "Push service images")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress the build output")
	f.BoolVar(&o.pull, "pull", false, "Always attempt to pull a newer version of the image")
	f.StringArrayVar(&o.args, "build-arg", nil, "Set build-time variables for services")
	f.StringVar(&o.ssh, "ssh", "", "Set SSH authentications used when building service images. (use 'default' for using your default SSH Agent)")
	f.StringVar(&o.builder, "builder", "", "Set builder to use")
	f.BoolVar(&o.deps, "with-dependencies", false, "Also build dependencies (transitively)")
	f.StringVar(&o.provenance, "provenance", "", "Add a provenance attestation")
	f.StringVar(&o.sbom, "sbom", "", "Add a SBOM attestation")
	f.BoolVar(&o.noCache, "no-cache", false, "Do not use cache when building the image")
	f.VarP(&o.memory, "memory", "m", "Set memory limit for the build container. Not supported by BuildKit.")
	f.StringVar(&t.progress, "progress", "", "Set type of ui output ("+strings.Join(modes, ", ")+")")
	hide(f, "progress")
	f.BoolVar(&o.print, "print", false, "Print equivalent bake file")
	f.BoolVar(&o.check, "check", false, "Check build configuration")
	for _, old := range []string{"parallel", "compress", "force-rm", "no-rm"} {
		f.Bool(old, true, "DEPRECATED")
		hide(f, old)
	}
	return cmd
}

func (t *tool) build(ctx context.Context, o buildOptions, services []string) error {
	if err := o.refuse(t.docker.CurrentContext()); err != nil {
		return err
	}
	if o.quiet || o.print {
		t.screen = quiet{}
	}
	var chosen []string
	if o.deps {
		chosen = services
	}
	a, err := t.load(ctx, chosen)
	if err != nil {
		return err
	}
	if err := known(a, services); err != nil {
		return err
	}
	if len(services) == 0 || o.deps {
		services = a.Project.ServiceNames()
	}
	order, err := buildOrder(a.Project, services)
	if err != nil {
		return err
	}
	if o.print {
		return t.printBake(o, a.Project, order)
	}
	if len(order) == 0 {
		t.warn("%s", say("No services to build", "No hay servicios que construir"))
		return nil
	}
	return t.makeImages(ctx, o, a.Project, order)
}

// refuse names what a build cannot be asked for.
func (o buildOptions) refuse(dockerContext string) error {
	if o.memory != 0 && !o.print {
		return errors.New("--memory is not supported: BuildKit bounds no single build; the daemon bounds all of them together")
	}
	if o.builder != "" && o.builder != "default" && o.builder != dockerContext && !o.print {
		return fmt.Errorf("--builder %s is not supported: images are built by the engine itself; to build elsewhere use docker buildx bake with the file of build --print", o.builder)
	}
	if id, _, ok := strings.Cut(o.ssh, "="); !ok && id != "" && id != "default" {
		return fmt.Errorf("invalid ssh key %q: want default, or name=socket or key", o.ssh)
	}
	return nil
}

// buildFirst builds the images that an application lacks, or all that can be
// built where the policy asks for it, before the daemon is asked to run it: the
// contexts lie where the client is. The daemon then builds nothing.
func (t *tool) buildFirst(ctx context.Context, o *makeOptions, a *app.App, chosen []string, p *app.Policy) error {
	if p.NoBuild || t.dryRun {
		return nil
	}
	if len(chosen) == 0 || !p.NoDeps {
		chosen = a.Project.ServiceNames()
	}
	order, err := buildOrder(a.Project, chosen)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range order {
		s, _ := serviceOf(a.Project, name)
		policy := s.PullPolicy
		if p.Pull != "" {
			policy = p.Pull
		}
		if !p.Build && policy != types.PullPolicyBuild {
			_, err := t.docker.Client().ImageInspect(ctx, t.imageName(a.Project, s))
			if err == nil || policy == types.PullPolicyAlways && s.Image != "" {
				continue
			}
			if !errdefs.IsNotFound(err) {
				return err
			}
		}
		missing = append(missing, name)
	}
	if len(missing) > 0 {
		if err := t.makeImages(ctx, buildOptions{quiet: o.quietBuild, toRun: true, out: o.buildOut}, a.Project, missing); err != nil {
			return err
		}
	}
	p.Build, p.NoBuild = false, true
	return nil
}

// serviceOf finds a service, of whatever profile: others may be made from it.
func serviceOf(p *types.Project, name string) (types.ServiceConfig, bool) {
	if s, ok := p.Services[name]; ok {
		return s, true
	}
	s, ok := p.DisabledServices[name]
	return s, ok
}

// buildOrder gives those of some services that can be built, after those that
// they are made from.
func buildOrder(p *types.Project, services []string) ([]string, error) {
	var order []string
	begun := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		s, ok := serviceOf(p, name)
		if !ok || s.Build == nil || slices.Contains(order, name) {
			return nil
		}
		if begun[name] {
			return fmt.Errorf("services.%s.build.additional_contexts: it is made from itself", name)
		}
		begun[name] = true
		for _, key := range slices.Sorted(maps.Keys(s.Build.AdditionalContexts)) {
			other, ok := strings.CutPrefix(s.Build.AdditionalContexts[key], types.ServicePrefix)
			if !ok {
				continue
			}
			if o, ok := serviceOf(p, other); !ok || o.Build == nil {
				return fmt.Errorf("services.%s.build.additional_contexts.%s: there is no service %s with a build section", name, key, other)
			}
			if err := visit(other); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range services {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// imageName is the name that a service's image gets.
func (t *tool) imageName(p *types.Project, s types.ServiceConfig) string {
	sep := "-"
	if t.isCompatible(p) {
		sep = "_"
	}
	return app.ImageName(p.Name, s, sep)
}

// makeImages builds the images of some services at the same time. Services
// that these are made from are built along, and give no image.
func (t *tool) makeImages(ctx context.Context, o buildOptions, p *types.Project, services []string) error {
	order, err := buildOrder(p, services)
	if err != nil {
		return err
	}
	b := build.Batch{Check: o.check, Out: o.out, Mode: t.buildMode(o), Limit: max(0, t.parallel)}
	if b.Out == nil {
		b.Out = t.docker.Out()
	}
	for _, name := range order {
		s, _ := serviceOf(p, name)
		target, err := t.target(o, p, s)
		if err != nil {
			return fmt.Errorf("services.%s.build: %w", name, err)
		}
		target.Internal = !slices.Contains(services, name)
		b.Targets = append(b.Targets, target)
	}
	if o.check {
		if t.dryRun {
			return nil
		}
		_, err := b.Run(ctx, t.docker)
		return t.explain(err)
	}
	began := time.Now()
	image := func(name string) string {
		s, _ := serviceOf(p, name)
		return t.imageName(p, s)
	}
	for _, name := range services {
		t.screen.on(event{id: "Image " + image(name), text: "Building"})
	}
	var built map[string]map[string]string
	if !t.dryRun {
		built, err = b.Run(ctx, t.docker)
	}
	t.screen.begin("build") // below what the builder has shown
	var failure *build.Failure
	for _, name := range services {
		e := event{id: "Image " + image(name), since: began}
		switch {
		case built[name] != nil || t.dryRun:
			e.state, e.text = done, "Built"
		case errors.As(err, &failure) && failure.Target == name:
			e.state, e.text, e.details = failed, "Error", failure.Err.Error()
		default:
			e.state, e.text = warned, "Interrupted"
		}
		t.screen.on(e)
		if s, _ := serviceOf(p, name); o.push && s.Image == "" {
			t.screen.on(event{id: name, state: warned, text: "Skipped: service has no image name"})
		}
	}
	t.screen.end(err == nil)
	return t.explain(err)
}

// explain shows where in a Dockerfile a build failed.
func (t *tool) explain(err error) error {
	if err != nil && t.mode != "json" {
		build.Explain(t.docker.Err(), err)
	}
	return err
}

// buildMode is how the builder's progress is shown: as the rest, but that it is
// its own writer that must be a terminal.
func (t *tool) buildMode(o buildOptions) progressui.DisplayMode {
	switch {
	case o.quiet || o.check || t.mode == "quiet":
		return progressui.QuietMode
	case t.mode == "json":
		return progressui.RawJSONMode
	case o.out != nil:
		return progressui.PlainMode
	case t.mode == "tty" && t.progress != "tty":
		return progressui.DisplayMode(cmp.Or(os.Getenv("BUILDKIT_PROGRESS"), "auto"))
	}
	return progressui.DisplayMode(t.mode)
}

// target says what the image of a service is built from.
func (t *tool) target(o buildOptions, p *types.Project, s types.ServiceConfig) (build.Target, error) {
	b := s.Build
	platforms, err := buildPlatforms(o, p, s)
	if err != nil {
		return build.Target{}, err
	}
	if b.Isolation != "" && b.Isolation != "default" {
		return build.Target{}, fmt.Errorf("isolation: %s is not supported: it is for Windows; leave it out", b.Isolation)
	}
	out := build.Target{
		Name: s.Name, Context: b.Context, Contexts: map[string]string{}, File: dockerfilePath(b), Inline: b.DockerfileInline, Stage: b.Target,
		Args: buildArgs(o, p, b), Labels: buildLabels(p, s), Tags: append(slices.Clone(b.Tags), t.imageName(p, s)), Platforms: platforms,
		Ulimits: ulimits(b.Ulimits), Network: b.Network, ShmBytes: int64(b.ShmSize), Allow: slices.Clone(b.Entitlements),
		CacheFrom: b.CacheFrom, CacheTo: b.CacheTo, NoCacheFilter: b.NoCacheFilter, NoCache: b.NoCache || o.noCache, Pull: b.Pull || o.pull,
		Push: o.push && s.Image != "", Attests: attests(b), Provenance: o.provenance, SBOM: o.sbom,
	}
	for key, v := range b.AdditionalContexts {
		if other, ok := strings.CutPrefix(v, types.ServicePrefix); ok {
			v = build.FromTarget + other
		}
		out.Contexts[key] = v
	}
	for _, host := range slices.Sorted(maps.Keys(b.ExtraHosts)) {
		for _, ip := range b.ExtraHosts[host] {
			out.Hosts = append(out.Hosts, host+"="+ip)
		}
	}
	if b.Privileged {
		out.Allow = append(out.Allow, "security.insecure")
	}
	for _, key := range b.SSH {
		out.SSH = append(out.SSH, strings.TrimSuffix(key.ID+"="+key.Path, "="))
	}
	if o.ssh != "" {
		out.SSH = append(out.SSH, o.ssh)
	}
	if len(b.Secrets) > 0 && !o.print && !o.check { // no step is run
		values, err := t.secrets(p, b.Secrets)
		if err != nil {
			return build.Target{}, err
		}
		out.Secrets = secretsprovider.FromMap(values)
	}
	return out, nil
}

// secrets reads what steps may ask for, by the name under which they do.
func (t *tool) secrets(p *types.Project, used []types.ServiceSecretConfig) (map[string][]byte, error) {
	values := map[string][]byte{}
	for _, u := range used {
		id, secret := cmp.Or(u.Target, u.Source), p.Secrets[u.Source]
		switch {
		case secret.Environment != "":
			v, ok := p.Environment[secret.Environment]
			if !ok {
				t.warn(say("the variable %s is not set: the secret %s is empty", "la variable %s no está definida: el secreto %s está vacío"), secret.Environment, u.Source)
			}
			values[id] = []byte(v)
		case secret.File != "":
			text, err := readSecret(secret.File)
			if err != nil {
				return nil, fmt.Errorf("secrets: %s: %w", u.Source, err)
			}
			values[id] = text
		default:
			return nil, fmt.Errorf("secrets: %s has neither file nor environment, and nobody here knows external ones", u.Source)
		}
	}
	return values, nil
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, secretsprovider.MaxSecretSize+1))
	if err == nil && len(text) > secretsprovider.MaxSecretSize {
		err = fmt.Errorf("%s is longer than %d bytes", path, secretsprovider.MaxSecretSize)
	}
	return text, err
}

// buildArgs are the arguments of a build: of the file and of the command line.
// One without a value takes that of the project's environment.
func buildArgs(o buildOptions, p *types.Project, b *types.BuildConfig) map[string]string {
	given := types.MappingWithEquals{}
	maps.Copy(given, b.Args)
	maps.Copy(given, types.NewMappingWithEquals(o.args))
	args := map[string]string{}
	for k, v := range given {
		if v != nil {
			args[k] = *v
		} else if v, ok := p.Environment[k]; ok {
			args[k] = v
		}
	}
	return args
}

// attests are the attestations that a file asks for.
func attests(b *types.BuildConfig) (list []string) {
	for _, a := range []struct{ kind, value string }{{"provenance", b.Provenance}, {"sbom", b.SBOM}} {
		switch a.value {
		case "":
		case "true":
			list = append(list, "type="+a.kind)
		case "false":
			list = append(list, "type="+a.kind+",disabled=true")
		default:
			list = append(list, "type="+a.kind+","+a.value)
		}
	}
	return list
}

// buildPlatforms are those that an image is built for: those of build, else the
// one that the service runs on; none leaves it to the builder.
func buildPlatforms(o buildOptions, p *types.Project, s types.ServiceConfig) ([]string, error) {
	own := cmp.Or(s.Platform, p.Environment["DOCKER_DEFAULT_PLATFORM"])
	list := s.Build.Platforms
	switch {
	case own != "" && len(list) > 0 && !slices.Contains(list, own):
		return nil, fmt.Errorf("build.platforms does not have %s, on which the service runs", own)
	case own != "" && (o.toRun || len(list) == 0):
		return []string{own}, nil
	case o.toRun && len(list) > 1:
		return nil, nil
	}
	return list, nil
}

// buildLabels mark an image as docker compose does.
func buildLabels(p *types.Project, s types.ServiceConfig) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, s.Build.Labels)
	labels[labelProject], labels[labelService], labels[app.LabelVersion] = p.Name, s.Name, app.ComposeVersion
	return labels
}

// ulimits as flags and bake write them.
func ulimits(limits map[string]*types.UlimitsConfig) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		if l := limits[name]; l.Single > 0 {
			list = append(list, fmt.Sprintf("%s=%d", name, l.Single))
		} else {
			list = append(list, fmt.Sprintf("%s=%d:%d", name, l.Soft, l.Hard))
		}
	}
	return list
}

// dockerfilePath is relative to the context, where that is a folder here.
func dockerfilePath(b *types.BuildConfig) string {
	file := b.Dockerfile
	if file == "" || build.IsRemote(b.Context) {
		return file
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(b.Context, file)
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(file)); err == nil {
		file = filepath.Join(dir, filepath.Base(file))
	}
	return file
}
