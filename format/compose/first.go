package compose

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/override"
	"github.com/compose-spec/compose-go/v2/paths"
	"github.com/compose-spec/compose-go/v2/transform"
	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/lib/fault"
)

// The first format: fig.yml, and docker-compose.yml without a version. Services
// stand at the top, share the engine's bridge, find each other by links, and
// name volumes of the whole machine. It is translated with the meaning
// docker-compose 1.29.2 gives it.

// firstKeys are the keys of a service of the first format.
var firstKeys = []string{
	"build", "cap_add", "cap_drop", "cgroup_parent", "command", "container_name", "cpu_quota", "cpu_shares", "cpuset",
	"devices", "dns", "dns_search", "dockerfile", "domainname", "entrypoint", "env_file", "environment", "expose",
	"extends", "external_links", "extra_hosts", "hostname", "image", "ipc", "labels", "links", "log_driver", "log_opt",
	"mac_address", "mem_limit", "mem_swappiness", "memswap_limit", "net", "pid", "ports", "privileged", "read_only",
	"restart", "security_opt", "shm_size", "stdin_open", "stop_signal", "tty", "ulimits", "user", "volume_driver",
	"volumes", "volumes_from", "working_dir",
}

// currentTops are keys at the top that only the current format has.
var currentTops = []string{"services", "networks", "volumes", "include", "configs", "secrets", "models", "jobs", "name", "version"}

// isFirstFormat says whether services stand at the top of the file.
func isFirstFormat(docs []*yaml.Node) bool {
	top, services := docs[0], 0
	for i := 0; i+1 < len(top.Content); i += 2 {
		k, v := top.Content[i].Value, target(top.Content[i+1])
		service := v.Kind == yaml.MappingNode && (find(v, "image") != nil || find(v, "build") != nil || find(v, "extends") != nil)
		if slices.Contains(currentTops, k) && (k != "version" && k != "name" || v.Kind != yaml.MappingNode) {
			return false
		}
		if service {
			services++
		}
	}
	return services > 0
}

// first is one file of the first format.
type first struct {
	s        *session
	file     string
	top      *yaml.Node
	services map[string]any // by name, as written, variables replaced
	volumes  map[string]any // the volumes it names, translated
	chain    []string       // what extends led here, outermost first
}

// translate replaces the content of the files by their meaning in the current
// format.
func (s *session) translate() error {
	var all []map[string]any
	var files []*first
	names := map[string]bool{}
	for _, f := range s.details.ConfigFiles {
		one, err := s.openFirst(f.Filename, f.Content, nil)
		if err != nil {
			return err
		}
		for name := range one.services {
			names[name] = true
		}
		files = append(files, one)
	}
	for _, one := range files {
		s.mapTree(one.file, "services", one.top, 1)
		services := map[string]any{}
		for _, name := range slices.Sorted(maps.Keys(one.services)) {
			out, err := one.service(name, names)
			if err != nil {
				return err
			}
			for _, earlier := range all {
				replaceSource(earlier[name], out)
			}
			services[name] = out
		}
		all = append(all, services)
		f := &s.details.ConfigFiles[len(all)-1]
		f.Content = []byte("{}\n") // compose-go looks for a name there
		f.Config = map[string]any{"services": services}
		if len(one.volumes) > 0 {
			f.Config["volumes"] = one.volumes
		}
	}
	return s.complete(all)
}

// complete checks what is known only once all files are merged, and puts every
// service without a network of its own on the bridge.
func (s *session) complete(all []map[string]any) error {
	seen := map[string]map[string]bool{}
	for _, services := range all {
		for name, v := range services {
			if seen[name] == nil {
				seen[name] = map[string]bool{}
			}
			for key := range v.(map[string]any) {
				seen[name][key] = true
			}
		}
	}
	for name, keys := range seen {
		at := s.sources["services."+name]
		if !keys["image"] && !keys["build"] {
			return fault.Invalidf("%s: service %q has neither image nor build", at, name)
		}
		if !keys["network_mode"] {
			for _, services := range all {
				if service, ok := services[name].(map[string]any); ok {
					service["network_mode"] = "bridge"
					break
				}
			}
		}
	}
	return nil
}

// replaceSource takes image or build out of an earlier file's service where a
// later file says the other.
func replaceSource(earlier any, later map[string]any) {
	was, ok := earlier.(map[string]any)
	if !ok {
		return
	}
	if _, ok := later["image"]; ok {
		delete(was, "build")
	} else if _, ok := later["build"]; ok {
		delete(was, "image")
	}
}

func (s *session) openFirst(file string, text []byte, chain []string) (*first, error) {
	docs, err := parse(file, text)
	if err != nil {
		return nil, err
	}
	if len(docs) != 1 {
		return nil, fault.Invalidf("%s: a file of version 1 is one document, not %d", file, len(docs))
	}
	one := &first{s: s, file: file, top: docs[0], volumes: map[string]any{}, chain: chain}
	var tree map[string]any
	if err := docs[0].Decode(&tree); err != nil {
		return nil, syntax(file, err)
	}
	one.services, _ = tree, 0
	for i := 0; i+1 < len(docs[0].Content); i += 2 {
		k, v := docs[0].Content[i], target(docs[0].Content[i+1])
		if v.Kind != yaml.MappingNode {
			return nil, fault.Invalidf("%s: %q is no service: a mapping with image or build is needed", at(file, k), k.Value)
		}
		if err := one.checkService(k, v); err != nil {
			return nil, err
		}
	}
	for name, v := range one.services {
		replaced, err := s.replace(v)
		if err != nil {
			return nil, fault.Invalidf("%s: %w", at(file, keyOf(docs[0], name)), err)
		}
		one.services[name] = replaced
	}
	return one, nil
}

func keyOf(top *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == name {
			return top.Content[i]
		}
	}
	return top
}

var serviceName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

func (f *first) checkService(k, v *yaml.Node) error {
	if !serviceName.MatchString(k.Value) {
		return fault.Invalidf("%s: %q cannot be the name of a service", at(f.file, k), k.Value)
	}
	for i := 0; i+1 < len(v.Content); i += 2 {
		key := v.Content[i]
		if key.Value == "<<" || slices.Contains(firstKeys, key.Value) || f.s.Unvalidated {
			continue
		}
		if _, ok := specification().keys["services"].other.keys[key.Value]; ok {
			return fault.Invalidf("%s: %s.%s needs the current format: put the services below `services:`", at(f.file, key), k.Value, key.Value)
		}
		return fault.Invalidf("%s: unknown key %q in %s%s", at(f.file, key), key.Value, k.Value, suggest(key.Value, firstKeys))
	}
	return nil
}

// replace replaces variables, and protects what is left of dollar signs from
// being read as variables again.
func (s *session) replace(v any) (any, error) {
	switch v := v.(type) {
	case string:
		if s.Uninterpolated {
			return v, nil
		}
		text, err := s.substitute(v, s.details.LookupEnv)
		return strings.ReplaceAll(text, "$", "$$"), err
	case []any:
		for i, e := range v {
			r, err := s.replace(e)
			if err != nil {
				return nil, err
			}
			v[i] = r
		}
	case map[string]any:
		for k, e := range v {
			r, err := s.replace(e)
			if err != nil {
				return nil, err
			}
			v[k] = r
		}
	}
	return v, nil
}

// service translates one service; names are those of all services of the project.
func (f *first) service(name string, names map[string]bool) (map[string]any, error) {
	in, _ := f.services[name].(map[string]any)
	out := map[string]any{}
	for k, v := range in {
		if v != nil {
			out[k] = v
		}
	}
	refuse := func(key, format string, args ...any) error {
		where := keyOf(f.top, name)
		if key != "" {
			where = keyOf(target(find(f.top, name)), key)
		}
		return fault.Invalidf("%s: %s", at(f.file, where), fmt.Sprintf(format, args...))
	}
	if out["image"] != nil && out["build"] != nil {
		return nil, refuse("build", "service %q has both image and build; version 1 wants one of them", name)
	}
	f.build(out)
	f.logging(out)
	if err := f.network(out, names); err != nil {
		return nil, refuse("net", "%s", err)
	}
	if list, ok := out["links"].([]any); ok {
		for _, l := range list {
			other, _, _ := strings.Cut(fmt.Sprint(l), ":")
			if !names[other] {
				return nil, refuse("links", "service %q has a link to %q, which is no service; a container outside belongs to external_links", name, other)
			}
		}
	}
	if list, ok := out["ports"].([]any); ok {
		for i, p := range list {
			if text := fmt.Sprint(p); strings.HasPrefix(text, ":") {
				return nil, refuse("ports", "services.%s.ports[%d]: %q is invalid: no port of the host before the colon", name, i, text)
			}
		}
	}
	if list, ok := out["volumes_from"].([]any); ok {
		out["volumes_from"] = volumesFrom(list, names)
	}
	f.mounts(out)
	return f.extend(name, out, names, refuse)
}

func (f *first) build(out map[string]any) {
	context, hasBuild := out["build"]
	dockerfile, hasFile := out["dockerfile"]
	delete(out, "dockerfile")
	if !hasBuild && !hasFile {
		return
	}
	build := map[string]any{}
	if hasBuild {
		build["context"] = context
	}
	if hasFile {
		build["dockerfile"] = dockerfile
	}
	out["build"] = build
}

func (f *first) logging(out map[string]any) {
	logging := map[string]any{}
	if v, ok := out["log_driver"]; ok {
		logging["driver"] = v
	}
	if v, ok := out["log_opt"]; ok {
		logging["options"] = v
	}
	delete(out, "log_driver")
	delete(out, "log_opt")
	if len(logging) > 0 {
		out["logging"] = logging
	}
}

func (f *first) network(out map[string]any, names map[string]bool) error {
	net, ok := out["net"]
	if !ok {
		return nil
	}
	delete(out, "net")
	mode, ok := net.(string)
	if !ok {
		return fmt.Errorf("net is a name: bridge, host, none or container:NAME")
	}
	if other, ok := strings.CutPrefix(mode, "container:"); ok && names[other] {
		mode = "service:" + other
	}
	out["network_mode"] = mode
	return nil
}

// volumesFrom marks what is not a service as a container.
func volumesFrom(list []any, names map[string]bool) []any {
	out := make([]any, len(list))
	for i, v := range list {
		text := fmt.Sprint(v)
		if source, _, _ := strings.Cut(text, ":"); !names[source] && source != "container" && source != "service" {
			text = "container:" + text
		}
		out[i] = strings.TrimPrefix(text, "service:")
	}
	return out
}

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// mounts declares the volumes that a service names: they are the machine's,
// so they keep their names.
func (f *first) mounts(out map[string]any) {
	driver, hasDriver := out["volume_driver"]
	delete(out, "volume_driver")
	list, _ := out["volumes"].([]any)
	for _, v := range list {
		source, _, found := strings.Cut(fmt.Sprint(v), ":")
		if !found || !volumeName.MatchString(source) {
			continue
		}
		volume := map[string]any{"name": source, "labels": map[string]any{app.LabelScope: app.ScopeMachine}}
		if hasDriver {
			volume["driver"] = driver
		}
		f.volumes[source] = volume
	}
}

// maxExtends is how long a chain of extends may be.
const maxExtends = 32

// extend puts a service onto the one it extends, in this file or another.
func (f *first) extend(name string, out map[string]any, names map[string]bool, refuse func(key, format string, args ...any) error) (map[string]any, error) {
	var from, file string
	switch e := out["extends"].(type) {
	case nil:
		return out, nil
	case string:
		from = e
	case map[string]any:
		from, _ = e["service"].(string)
		file, _ = e["file"].(string)
	}
	delete(out, "extends")
	if from == "" {
		return nil, refuse("extends", "extends needs the name of a service")
	}
	path := f.file
	if file != "" {
		path = filepath.Join(f.dir(), unescape(file))
		if filepath.IsAbs(unescape(file)) {
			path = filepath.Clean(unescape(file))
		}
	}
	step := path + "#" + from
	if slices.Contains(f.chain, step) || path == f.file && from == name {
		return nil, refuse("extends", "service %q extends itself: %s", name, strings.Join(append(f.chain, step), " → "))
	}
	if len(f.chain) >= maxExtends {
		return nil, refuse("extends", "more than %d services extend one another", maxExtends)
	}
	chain := append(slices.Clone(f.chain), f.file+"#"+name, step)
	base, err := f.base(path, from, chain, names, refuse)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"links", "volumes_from"} {
		if base[key] != nil {
			return nil, refuse("extends", "service %q cannot be extended: it has %s", from, key)
		}
	}
	if mode, _ := base["network_mode"].(string); strings.HasPrefix(mode, "service:") || strings.HasPrefix(mode, "container:") {
		return nil, refuse("extends", "service %q cannot be extended: it uses the network of another", from)
	}
	replaceSource(base, out)
	merged, err := override.ExtendService(base, out)
	if err != nil {
		return nil, refuse("extends", "%s", err)
	}
	return merged, nil
}

// dir is where the file's relative paths start.
func (f *first) dir() string {
	if f.file == "-" {
		return f.s.details.WorkingDir
	}
	return filepath.Dir(f.file)
}

func unescape(text string) string { return strings.ReplaceAll(text, "$$", "$") }

// base gives a service to extend, its relative paths made absolute where it
// comes from another file.
func (f *first) base(path, name string, chain []string, names map[string]bool, refuse func(key, format string, args ...any) error) (map[string]any, error) {
	other := &first{s: f.s, file: f.file, top: f.top, services: f.services, volumes: f.volumes, chain: chain}
	if path != f.file {
		text, err := readFile(path)
		if err != nil {
			return nil, refuse("extends", "%s", err)
		}
		if other, err = f.s.openFirst(path, text, chain); err != nil {
			return nil, err
		}
		other.volumes = f.volumes
	}
	if _, ok := other.services[name]; !ok {
		return nil, refuse("extends", "%s has no service %q", path, name)
	}
	within := maps.Clone(names)
	for n := range other.services {
		within[n] = true
	}
	base, err := other.service(name, within)
	if err != nil || path == f.file {
		return base, err
	}
	model, err := transform.Canonical(map[string]any{"services": map[string]any{name: base}}, false)
	if err == nil {
		err = paths.ResolveRelativePaths(model, filepath.Dir(path), nil)
	}
	if err != nil {
		return nil, fault.Invalidf("%s: %w", path, err)
	}
	services, _ := model["services"].(map[string]any)
	base, _ = services[name].(map[string]any)
	return base, nil
}
