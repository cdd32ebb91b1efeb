package app

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/lib/fault"
)

// Document is an application on its way: as JSON to the daemon and into the
// store. It is complete: who reads it opens no file and asks no environment.
type Document struct {
	Name        string            `json:"name"`
	WorkingDir  string            `json:"working_dir,omitempty"`
	ConfigFiles []string          `json:"config_files,omitempty"`
	EnvFiles    []string          `json:"env_files,omitempty"` // as --env-file named them
	Profiles    []string          `json:"profiles,omitempty"`
	Disabled    []string          `json:"disabled,omitempty"` // services that profiles switch off: no orphans
	Platform    string            `json:"platform,omitempty"` // for services that name none
	Project     json.RawMessage   `json:"project"`            // the model, normalised, as compose-go writes it
	Contents    map[string]string `json:"contents,omitempty"` // "secret/key" and "config/key": values that are no files
	Files       map[string]string `json:"files,omitempty"`    // texts of files that options name (seccomp profiles), by path
}

const (
	maxServices = 10_000
	maxReplicas = 10_000 // of one service
)

// NewDocument makes the portable form of a.
func NewDocument(a *App) (Document, error) {
	p := a.Project
	d := Document{
		Name: p.Name, WorkingDir: p.WorkingDir, ConfigFiles: slices.Clone(p.ComposeFiles), EnvFiles: slices.Clone(a.EnvFiles),
		Profiles: slices.Clone(p.Profiles), Disabled: p.DisabledServiceNames(), Platform: p.Environment["DOCKER_DEFAULT_PLATFORM"],
		Contents: map[string]string{}, Files: map[string]string{},
	}
	var err error
	if d.Project, err = encodeProject(p); err != nil {
		return d, err
	}
	given := mountedSecrets(p)
	for key, s := range p.Secrets {
		if !given[key] {
			continue
		}
		if err := d.content("secret", key, types.FileObjectConfig(s), p.Environment); err != nil {
			return d, err
		}
	}
	for key, c := range p.Configs {
		if err := d.content("config", key, types.FileObjectConfig(c), p.Environment); err != nil {
			return d, err
		}
	}
	for _, s := range p.Services {
		for _, opt := range s.SecurityOpt {
			path, ok := seccompPath(opt)
			if !ok {
				continue
			}
			text, err := os.ReadFile(p.RelativePath(path))
			if err != nil {
				return d, fmt.Errorf("services.%s.security_opt: %w", s.Name, err)
			}
			d.Files[path] = string(text)
		}
	}
	return d, nil
}

// encodeProject writes a project as documents hold it.
func encodeProject(p *types.Project) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	parts := map[string]any{"name": p.Name, "services": withoutKeys(p.Services)}
	for name, part := range map[string]struct {
		n int
		v any
	}{
		"networks": {len(p.Networks), p.Networks}, "volumes": {len(p.Volumes), p.Volumes}, "secrets": {len(p.Secrets), p.Secrets},
		"configs": {len(p.Configs), p.Configs}, "jobs": {len(p.Jobs), p.Jobs}, "models": {len(p.Models), p.Models},
	} {
		if part.n > 0 {
			parts[name] = part.v
		}
	}
	if err := e.Encode(parts); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// withoutKeys leaves out the SSH agents and keys of builds: they are at hand
// where images are built, and no JSON of compose-go holds them.
func withoutKeys(services types.Services) types.Services {
	out := maps.Clone(services)
	for name, s := range out {
		if s.Build != nil && len(s.Build.SSH) > 0 {
			b := *s.Build
			b.SSH, s.Build = nil, &b
			out[name] = s
		}
	}
	return out
}

// mountedSecrets are those that containers get. What builds alone use stays
// where images are built.
func mountedSecrets(p *types.Project) map[string]bool {
	keys := map[string]bool{}
	for _, s := range p.Services {
		for _, used := range s.Secrets {
			keys[used.Source] = true
		}
		for _, h := range s.PreStart {
			for _, used := range h.Secrets {
				keys[used.Source] = true
			}
		}
	}
	for _, j := range p.Jobs {
		for _, used := range j.Secrets {
			keys[used.Source] = true
		}
	}
	return keys
}

// seccompPath gives the file that a security option names.
func seccompPath(opt string) (string, bool) {
	key, path, ok := strings.Cut(opt, "=")
	if !ok {
		key, path, ok = strings.Cut(opt, ":")
	}
	return path, ok && key == "seccomp" && path != "unconfined" && path != "builtin" && !strings.HasPrefix(path, "{")
}

func (d *Document) content(kind, key string, f types.FileObjectConfig, environment types.Mapping) error {
	switch {
	case f.Content != "":
		d.Contents[kind+"/"+key] = f.Content
	case f.Environment != "":
		v, ok := environment[f.Environment]
		if !ok {
			return fmt.Errorf("%ss.%s: the environment variable %s is not set", kind, key, f.Environment)
		}
		d.Contents[kind+"/"+key] = v
	}
	return nil
}

// App reads the document back. What comes from outside is checked here.
func (d Document) App() (*App, error) {
	var model map[string]any
	dec := json.NewDecoder(bytes.NewReader(d.Project))
	if err := dec.Decode(&model); err != nil {
		return nil, fault.Invalidf("the document's project is not JSON: %w", err)
	}
	integers(model)
	p := &types.Project{}
	for _, named := range []string{"services", "jobs"} {
		m, _ := model[named].(map[string]any)
		for name, s := range m {
			if s == nil {
				m[name] = map[string]any{}
			} else if _, ok := s.(map[string]any); !ok {
				return nil, fault.Invalidf("%s.%s is no mapping", named, name)
			}
			optOut(m[name])
		}
	}
	if err := loader.Transform(model, p); err != nil {
		return nil, fault.Invalidf("the document's project is not valid: %w", err)
	}
	if p.Name != d.Name || loader.NormalizeProjectName(d.Name) != d.Name || d.Name == "" {
		return nil, fault.Invalidf("%q is no name of an application: use lower-case letters, digits, - and _, beginning with a letter or digit", d.Name)
	}
	for name, n := range p.Networks {
		if slices.Contains(n.Ipam.Config, nil) {
			return nil, fault.Invalidf("networks.%s.ipam.config: an entry is empty", name)
		}
	}
	if len(p.Services) > maxServices {
		return nil, fault.Invalidf("the application has %d services: at most %d", len(p.Services), maxServices)
	}
	p.WorkingDir, p.ComposeFiles, p.Profiles = d.WorkingDir, slices.Clone(d.ConfigFiles), slices.Clone(d.Profiles)
	p.Environment = types.Mapping{}
	if d.Platform != "" {
		p.Environment["DOCKER_DEFAULT_PLATFORM"] = d.Platform
	}
	for name, s := range p.Services {
		s.Name = name
		if n := s.GetScale(); n < 0 || n > maxReplicas {
			return nil, fault.Invalidf("services.%s: %d containers are wanted: 0 to %d", name, n, maxReplicas)
		}
		p.Services[name] = s
	}
	for name, j := range p.Jobs {
		j.Name = name
		p.Jobs[name] = j
	}
	p.DisabledServices = types.Services{}
	for _, name := range d.Disabled {
		p.DisabledServices[name] = types.ServiceConfig{Name: name}
	}
	for at, v := range d.Contents {
		kind, key, _ := strings.Cut(at, "/")
		switch kind {
		case "secret":
			if s, ok := p.Secrets[key]; ok {
				s.Content = v
				p.Secrets[key] = s
			}
		case "config":
			if c, ok := p.Configs[key]; ok {
				c.Content = v
				p.Configs[key] = c
			}
		}
	}
	return &App{Project: p, EnvFiles: slices.Clone(d.EnvFiles), Files: d.Files}, nil
}

// optOut says again what is true unless said otherwise: JSON leaves it out,
// and compose-go's types read what is left out as false.
func optOut(container any) {
	m, _ := container.(map[string]any)
	each := func(key string, f func(map[string]any)) {
		list, _ := m[key].([]any)
		for _, v := range list {
			if v, ok := v.(map[string]any); ok {
				f(v)
			}
		}
	}
	truth := func(m map[string]any, key string) {
		if _, said := m[key]; !said {
			m[key] = true
		}
	}
	each("volumes", func(v map[string]any) {
		if b, ok := v["bind"].(map[string]any); ok {
			truth(b, "create_host_path")
		}
	})
	each("env_file", func(f map[string]any) { truth(f, "required") })
	for _, hooks := range []string{"pre_start", "post_start", "pre_stop"} {
		each(hooks, func(h map[string]any) { optOut(h) })
	}
}

// integers turns whole numbers into ints, as a reader of YAML gives them.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = integers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = integers(e)
		}
	case float64:
		if n := int(v); float64(n) == v {
			return n
		}
	}
	return v
}

// Hash is the same for documents that want the same.
func (d Document) Hash() string {
	b, err := json.Marshal(d)
	if err != nil {
		return "" // a RawMessage that is no JSON: App refuses it
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
