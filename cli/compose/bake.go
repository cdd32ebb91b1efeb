package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/cli/cli-plugins/manager"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/core/app"
)

// bakeFile is what `docker buildx bake --file` reads; keys are its own.
type bakeFile struct {
	Group  map[string]bakeGroup  `json:"group"`
	Target map[string]bakeTarget `json:"target"`
}

type bakeGroup struct {
	Targets []string `json:"targets"`
}

type bakeTarget struct {
	Context          string            `json:"context,omitempty"`
	Contexts         map[string]string `json:"contexts,omitempty"`
	Dockerfile       string            `json:"dockerfile,omitempty"`
	DockerfileInline string            `json:"dockerfile-inline,omitempty"`
	Args             map[string]string `json:"args,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Tags             []string          `json:"tags,omitempty"`
	CacheFrom        []string          `json:"cache-from,omitempty"`
	CacheTo          []string          `json:"cache-to,omitempty"`
	Target           string            `json:"target,omitempty"`
	Secret           []string          `json:"secret,omitempty"`
	SSH              []string          `json:"ssh,omitempty"`
	Platforms        []string          `json:"platforms,omitempty"`
	Pull             bool              `json:"pull,omitempty"`
	NoCache          bool              `json:"no-cache,omitempty"`
	Network          string            `json:"network,omitempty"`
	NoCacheFilter    []string          `json:"no-cache-filter,omitempty"`
	ShmSize          types.UnitBytes   `json:"shm-size,omitempty"` // a string in JSON
	Ulimits          []string          `json:"ulimits,omitempty"`
	Call             string            `json:"call,omitempty"`
	Entitlements     []string          `json:"entitlements,omitempty"`
	ExtraHosts       map[string]string `json:"extra-hosts,omitempty"`
	Output           []string          `json:"output,omitempty"`
	Attest           []string          `json:"attest,omitempty"`
}

// printBake writes the builds of some services as a file for `docker buildx bake`.
func (t *tool) printBake(o buildOptions, p *types.Project, order []string) error {
	text, err := t.bakeFile(o, p, order)
	if err != nil {
		return err
	}
	_, err = t.docker.Out().Write(text)
	return err
}

// bakeFile describes the builds of some services, with those that they are made
// from.
func (t *tool) bakeFile(o buildOptions, p *types.Project, order []string) ([]byte, error) {
	names := targetNames(p)
	f := bakeFile{Group: map[string]bakeGroup{}, Target: map[string]bakeTarget{}}
	group := bakeGroup{Targets: []string{}}
	for _, name := range order {
		var err error
		if f.Target[names[name]], err = t.bakeTarget(o, p, p.Services[name], names); err != nil {
			return nil, fmt.Errorf("services.%s.build: %w", name, err)
		}
		group.Targets = append(group.Targets, names[name])
	}
	f.Group["default"] = group
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(f)
	return b.Bytes(), err
}

// bake lets buildx, the plugin of docker, build one service's image on the
// engine; why names what it is needed for.
func (t *tool) bake(ctx context.Context, o buildOptions, p *types.Project, s types.ServiceConfig, why string) error {
	plugin, err := manager.GetPlugin("buildx", t.docker, &cobra.Command{})
	if err == nil {
		err = plugin.Err
	}
	if err != nil {
		return fmt.Errorf("%s needs docker buildx, which is not there: install it (%w)", why, err)
	}
	order, err := buildOrder(&app.App{Project: p}, []string{s.Name}, false)
	if err != nil {
		return err
	}
	text, err := t.bakeFile(o, p, order)
	if err != nil {
		return err
	}
	args := []string{"bake", "--file", "-"}
	env := append(os.Environ(), "DOCKER_HOST="+t.docker.Client().DaemonHost())
	for _, name := range order { // those that it is made from are built along
		other := p.Services[name]
		for _, dir := range append(slices.Collect(maps.Values(other.Build.AdditionalContexts)), other.Build.Context) {
			if filepath.IsAbs(dir) {
				args = append(args, "--allow", "fs.read="+dir)
			}
		}
		for _, used := range other.Build.Secrets {
			secret := p.Secrets[used.Source]
			if secret.File != "" {
				args = append(args, "--allow", "fs.read="+secret.File)
			}
			if v, ok := p.Environment[secret.Environment]; ok {
				env = append(env, secret.Environment+"="+v)
			}
		}
	}
	for _, e := range s.Build.Entitlements {
		args = append(args, "--allow", e)
	}
	if s.Build.Privileged {
		args = append(args, "--allow", "security.insecure")
	}
	for flag, v := range map[string]string{"--sbom": o.sbom, "--provenance": o.provenance, "--builder": o.builder} {
		if v != "" {
			args = append(args, flag+"="+v)
		}
	}
	if o.quiet || t.mode == "quiet" {
		args = append(args, "--progress", "quiet")
	}
	cmd := exec.CommandContext(ctx, plugin.Path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = bytes.NewReader(text), t.docker.Out(), t.docker.Err(), env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = cancelLimit
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("docker buildx bake: %w", err)
	}
	return nil
}

// beyond names what of a build the engine's builder is not asked for by the
// build request that it has had since docker 1; "" where there is nothing.
func (o buildOptions) beyond(b *types.BuildConfig, platforms []string) string {
	for _, need := range []struct {
		name string
		is   bool
	}{
		{"--ssh", o.ssh != ""}, {"--provenance", o.provenance != ""}, {"--sbom", o.sbom != ""}, {"--check", o.check},
		{"--builder", o.builder != "" && o.builder != "default"},
		{"build.additional_contexts", len(b.AdditionalContexts) > 0}, {"build.secrets", len(b.Secrets) > 0}, {"build.ssh", len(b.SSH) > 0},
		{"build.cache_to", len(b.CacheTo) > 0}, {"build.no_cache_filter", len(b.NoCacheFilter) > 0}, {"build.platforms", len(platforms) > 1},
		{"build.privileged", b.Privileged}, {"build.entitlements", len(b.Entitlements) > 0}, {"build.provenance", b.Provenance != ""}, {"build.sbom", b.SBOM != ""},
	} {
		if need.is {
			return need.name
		}
	}
	return ""
}

// targetNames gives each service the name of its target: bake takes no dots.
func targetNames(p *types.Project) map[string]string {
	names, taken := map[string]string{}, map[string]bool{}
	for _, service := range slices.Sorted(maps.Keys(p.Services)) {
		name := strings.ReplaceAll(service, ".", "_")
		for taken[name] {
			name += "_"
		}
		names[service], taken[name] = name, true
	}
	return names
}

func (t *tool) bakeTarget(o buildOptions, p *types.Project, s types.ServiceConfig, names map[string]string) (bakeTarget, error) {
	b := s.Build
	platforms, err := buildPlatforms(p, s)
	if err != nil {
		return bakeTarget{}, err
	}
	if o.toRun && len(platforms) > 1 {
		platforms = nil // the builder takes its own
	}
	out := bakeTarget{
		Context: b.Context, Contexts: map[string]string{}, Dockerfile: dockerfilePath(b), DockerfileInline: unexpanded(b.DockerfileInline),
		Args: t.bakeArgs(o, p, b), Labels: buildLabels(p, s), Tags: append(slices.Clone(b.Tags), t.imageName(p, s)),
		CacheFrom: b.CacheFrom, CacheTo: b.CacheTo, Target: b.Target, Platforms: platforms, Pull: b.Pull || o.pull, NoCache: b.NoCache || o.noCache,
		Network: b.Network, NoCacheFilter: b.NoCacheFilter, ShmSize: b.ShmSize, Ulimits: ulimits(b.Ulimits), Entitlements: slices.Clone(b.Entitlements),
		ExtraHosts: map[string]string{},
	}
	for key, v := range b.AdditionalContexts {
		if other, ok := strings.CutPrefix(v, types.ServicePrefix); ok {
			v = "target:" + names[other]
		}
		out.Contexts[key] = v
	}
	for host, ips := range b.ExtraHosts {
		out.ExtraHosts[host] = strings.Join(ips, ",")
	}
	for _, key := range b.SSH {
		out.SSH = append(out.SSH, key.ID+"="+key.Path)
	}
	if o.ssh != "" {
		id, path, _ := strings.Cut(o.ssh, "=")
		out.SSH = append(out.SSH, id+"="+path)
	}
	if b.Privileged {
		out.Entitlements = append(out.Entitlements, "security.insecure")
	}
	for _, used := range b.Secrets {
		id, secret := used.Source, p.Secrets[used.Source]
		if used.Target != "" {
			id = used.Target
		}
		switch {
		case secret.Environment != "":
			out.Secret = append(out.Secret, "id="+id+",type=env,env="+secret.Environment)
		case secret.File != "":
			out.Secret = append(out.Secret, "id="+id+",type=file,src="+secret.File)
		default:
			return out, fmt.Errorf("secrets: %s has neither file nor environment, which is all that bake takes", used.Source)
		}
	}
	for kind, v := range map[string]string{"provenance": b.Provenance, "sbom": b.SBOM} {
		switch v {
		case "":
		case "true":
			out.Attest = append(out.Attest, "type="+kind)
		case "false":
			out.Attest = append(out.Attest, "type="+kind+",disabled=true")
		default:
			out.Attest = append(out.Attest, "type="+kind+","+v)
		}
	}
	slices.Sort(out.Attest)
	switch push := o.push && s.Image != ""; {
	case o.check:
		out.Call = "lint"
	case len(platforms) > 1:
		out.Output = []string{fmt.Sprintf("type=image,push=%t", push)}
	case push:
		out.Output = []string{"type=registry"}
	default:
		out.Output = []string{"type=docker"}
	}
	return out, nil
}

// unexpanded keeps ${…} from the variables of bake.
func unexpanded(text string) string { return strings.ReplaceAll(text, "${", "$${") }

// bakeArgs are the arguments of a build: of the file, of the command line, and
// those of a proxy that the person's configuration names.
func (t *tool) bakeArgs(o buildOptions, p *types.Project, b *types.BuildConfig) map[string]string {
	args := map[string]string{}
	given := types.MappingWithEquals{}
	maps.Copy(given, b.Args)
	maps.Copy(given, types.NewMappingWithEquals(o.args))
	for k, v := range given {
		if v != nil {
			args[k] = unexpanded(*v)
		} else if v, ok := p.Environment[k]; ok {
			args[k] = unexpanded(v)
		}
	}
	for k, v := range t.docker.ConfigFile().ParseProxyConfig(t.docker.Client().DaemonHost(), nil) {
		if _, set := args[k]; !set && v != nil {
			args[k] = unexpanded(*v)
		}
	}
	return args
}

// buildPlatforms are those that an image is built for: those of build, else the
// one that the service runs on; none leaves it to the builder.
func buildPlatforms(p *types.Project, s types.ServiceConfig) ([]string, error) {
	own := s.Platform
	if own == "" {
		own = p.Environment["DOCKER_DEFAULT_PLATFORM"]
	}
	switch {
	case own == "":
		return s.Build.Platforms, nil
	case len(s.Build.Platforms) == 0:
		return []string{own}, nil
	case !slices.Contains(s.Build.Platforms, own):
		return nil, fmt.Errorf("build.platforms does not have %s, on which the service runs", own)
	}
	return s.Build.Platforms, nil
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
	if file == "" || strings.Contains(b.Context, "://") || strings.HasPrefix(b.Context, "git@") {
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
