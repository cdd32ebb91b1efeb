package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/command/commands"
	cliopts "github.com/docker/cli/opts"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/core/app"
)

type buildOptions struct {
	push, quiet, pull, noCache, deps, print, check bool
	toRun                                          bool // an image that runs here is wanted, of one platform
	args                                           []string
	ssh, builder, provenance, sbom                 string
	memory                                         cliopts.MemBytes
}

func (t *tool) buildCommand() *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] [SERVICE...]",
		Short: say("Build or rebuild services", "Construye las imágenes de los servicios"),
		Example: `  berth compose build
  berth compose build --no-cache --build-arg VERSION=2 web`,
		RunE:              t.run(func(ctx context.Context, args []string) error { return t.build(ctx, o, args) }),
		ValidArgsFunction: t.completeServices,
	}
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
	if o.memory != 0 && !o.print {
		return errors.New("--memory is not supported: BuildKit bounds no single build; the daemon bounds all of them together")
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
	order, err := buildOrder(a, services, o.deps)
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
	for _, name := range order {
		if err := t.buildOne(ctx, o, a.Project, a.Project.Services[name]); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
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
	order, err := buildOrder(a, chosen, !p.NoDeps)
	if err != nil {
		return err
	}
	for _, name := range order {
		s := a.Project.Services[name]
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
		if err := t.buildOne(ctx, buildOptions{quiet: o.quietBuild, toRun: true}, a.Project, s); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
	}
	p.Build, p.NoBuild = false, true
	return nil
}

// buildOrder gives the services to build, those that others are made from first.
func buildOrder(a *app.App, services []string, deps bool) ([]string, error) {
	var order []string
	begun := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		s, ok := a.Project.Services[name]
		if !ok || s.Build == nil || slices.Contains(order, name) {
			return nil
		}
		if begun[name] {
			return fmt.Errorf("services.%s.build.additional_contexts: it is made from itself", name)
		}
		begun[name] = true
		for _, key := range slices.Sorted(maps.Keys(s.Build.AdditionalContexts)) {
			if other, ok := strings.CutPrefix(s.Build.AdditionalContexts[key], types.ServicePrefix); ok {
				if err := visit(other); err != nil {
					return err
				}
			}
		}
		order = append(order, name)
		return nil
	}
	names := services
	if len(services) == 0 || deps {
		names = a.Project.ServiceNames()
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// imageName is the name that a service's image gets.
func (t *tool) imageName(p *types.Project, s types.ServiceConfig) string {
	if s.Image != "" {
		return s.Image
	}
	sep := "-"
	if t.isCompatible(p) {
		sep = "_"
	}
	return p.Name + sep + s.Name
}

// buildOne builds the image of a service: by the engine's builder, or by buildx
// where more is wanted than the one can be asked for.
func (t *tool) buildOne(ctx context.Context, o buildOptions, p *types.Project, s types.ServiceConfig) error {
	b := s.Build
	platforms, err := buildPlatforms(p, s)
	if err != nil {
		return err
	}
	if o.toRun && len(platforms) > 1 {
		platforms = nil // the builder takes its own
	}
	image := t.imageName(p, s)
	id := "Image " + image
	t.screen.on(event{id: id, text: "Building"})
	if !t.dryRun {
		if why := o.beyond(b, platforms); why != "" {
			err = t.bake(ctx, o, p, s, why)
		} else {
			err = t.buildHere(ctx, o, p, s, image, platforms)
		}
		if err != nil {
			t.screen.on(event{id: id, state: failed, text: "Error", details: err.Error()})
			return err
		}
	}
	t.screen.on(event{id: id, state: done, text: "Built"})
	if !o.push || o.beyond(b, platforms) != "" { // buildx pushes itself
		return nil
	}
	if s.Image == "" {
		t.screen.on(event{id: s.Name, state: warned, text: "Skipped: service has no image name"})
		return nil
	}
	return t.push(ctx, image, false)
}

// buildHere builds by the engine's builder, as `docker build` asked it before buildx.
func (t *tool) buildHere(ctx context.Context, o buildOptions, p *types.Project, s types.ServiceConfig, image string, platforms []string) error {
	b := s.Build
	args := []string{"image", "build", "--tag", image}
	add := func(flag string, values ...string) {
		for _, v := range values {
			args = append(args, flag, v)
		}
	}
	add("--tag", b.Tags...)
	add("--cache-from", b.CacheFrom...)
	add("--platform", platforms...)
	add("--ulimit", ulimits(b.Ulimits)...)
	labels := buildLabels(p, s)
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		add("--label", k+"="+labels[k])
	}
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		if v := b.Args[k]; v != nil {
			add("--build-arg", k+"="+*v)
		} else if v, ok := p.Environment[k]; ok {
			add("--build-arg", k+"="+v)
		}
	}
	add("--build-arg", o.args...)
	for host, ips := range b.ExtraHosts {
		for _, ip := range ips {
			add("--add-host", host+":"+ip)
		}
	}
	for flag, v := range map[string]string{"--target": b.Target, "--network": b.Network, "--isolation": b.Isolation} {
		if v != "" {
			add(flag, v)
		}
	}
	if b.ShmSize > 0 {
		add("--shm-size", strconv.FormatInt(int64(b.ShmSize), 10))
	}
	for flag, given := range map[string]bool{"--no-cache": o.noCache || b.NoCache, "--pull": o.pull || b.Pull, "--quiet": o.quiet || t.mode == "quiet"} {
		if given {
			args = append(args, flag)
		}
	}
	if b.DockerfileInline != "" {
		f, err := os.CreateTemp("", "berth-dockerfile-*")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		_, err = f.WriteString(b.DockerfileInline)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		add("--file", f.Name())
	} else if b.Dockerfile != "" {
		add("--file", dockerfilePath(b))
	}
	root := &cobra.Command{Use: "docker", SilenceErrors: true, SilenceUsage: true}
	commands.AddCommands(root, t.docker)
	root.SetArgs(append(args, "--", b.Context))
	root.SetOut(t.docker.Out())
	root.SetErr(t.docker.Err())
	return root.ExecuteContext(ctx)
}
