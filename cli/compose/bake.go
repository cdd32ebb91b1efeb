package compose

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/cli/build"
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

// printBake writes the builds of some services, with those that they are made
// from, as a file for `docker buildx bake`.
func (t *tool) printBake(o buildOptions, p *types.Project, order []string) error {
	names := targetNames(p)
	f := bakeFile{Group: map[string]bakeGroup{}, Target: map[string]bakeTarget{}}
	group := bakeGroup{Targets: []string{}}
	for _, name := range order {
		s, _ := serviceOf(p, name)
		target, err := t.target(o, p, s)
		if err == nil {
			f.Target[names[name]], err = t.bakeTarget(o, p, s, target, names)
		}
		if err != nil {
			return fmt.Errorf("services.%s.build: %w", name, err)
		}
		group.Targets = append(group.Targets, names[name])
	}
	f.Group["default"] = group
	e := json.NewEncoder(t.docker.Out())
	e.SetIndent("", "  ")
	return e.Encode(f)
}

// targetNames gives each service the name of its target: bake takes no dots.
func targetNames(p *types.Project) map[string]string {
	names, taken := map[string]string{}, map[string]bool{}
	for _, service := range slices.Sorted(slices.Values(append(p.ServiceNames(), p.DisabledServiceNames()...))) {
		name := strings.ReplaceAll(service, ".", "_")
		for taken[name] {
			name += "_"
		}
		names[service], taken[name] = name, true
	}
	return names
}

func (t *tool) bakeTarget(o buildOptions, p *types.Project, s types.ServiceConfig, target build.Target, names map[string]string) (bakeTarget, error) {
	b := s.Build
	out := bakeTarget{
		Context: target.Context, Contexts: target.Contexts, Dockerfile: target.File, DockerfileInline: unexpanded(target.Inline),
		Args: map[string]string{}, Labels: target.Labels, Tags: target.Tags, CacheFrom: target.CacheFrom, CacheTo: target.CacheTo, Target: target.Stage,
		Platforms: target.Platforms, Pull: target.Pull, NoCache: target.NoCache, Network: target.Network, NoCacheFilter: target.NoCacheFilter,
		ShmSize: b.ShmSize, Ulimits: target.Ulimits, Entitlements: target.Allow, ExtraHosts: map[string]string{}, Attest: target.Attests,
	}
	for k, v := range t.docker.ConfigFile().ParseProxyConfig(t.docker.Client().DaemonHost(), nil) {
		if v != nil {
			out.Args[k] = unexpanded(*v)
		}
	}
	for k, v := range target.Args {
		out.Args[k] = unexpanded(v)
	}
	for key, v := range out.Contexts {
		if other, ok := strings.CutPrefix(v, build.FromTarget); ok {
			out.Contexts[key] = "target:" + names[other]
		}
	}
	for host, ips := range b.ExtraHosts {
		out.ExtraHosts[host] = strings.Join(ips, ",")
	}
	for _, key := range target.SSH {
		id, path, _ := strings.Cut(key, "=")
		out.SSH = append(out.SSH, id+"="+path)
	}
	for _, used := range b.Secrets {
		id, secret := cmp.Or(used.Target, used.Source), p.Secrets[used.Source]
		switch {
		case secret.Environment != "":
			out.Secret = append(out.Secret, "id="+id+",type=env,env="+secret.Environment)
		case secret.File != "":
			out.Secret = append(out.Secret, "id="+id+",type=file,src="+secret.File)
		default:
			return out, fmt.Errorf("secrets: %s has neither file nor environment, which is all that bake takes", used.Source)
		}
	}
	switch {
	case o.check:
		out.Call = "lint"
	case len(target.Platforms) > 1:
		out.Output = []string{fmt.Sprintf("type=image,push=%t", target.Push)}
	case target.Push:
		out.Output = []string{"type=registry"}
	default:
		out.Output = []string{"type=docker"}
	}
	return out, nil
}

// unexpanded keeps ${…} from the variables of bake.
func unexpanded(text string) string { return strings.ReplaceAll(text, "${", "$${") }
