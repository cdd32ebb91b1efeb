// Package compose reads Compose files of whatever age into one model: the
// current specification through compose-go, and the first format (fig.yml, and
// docker-compose.yml without a version) through a front end of its own.
//
// What a person wrote is hostile until proven otherwise: documents are bounded
// in size, depth and expansion before they are decoded, and each error names
// the file and the line. The package reads files and changes nothing; it knows
// neither engine nor daemon, and reaches other machines only through Remote.
package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/transform"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/compose-spec/compose-go/v2/utils"
	"github.com/docker/cli/pkg/kvfile"
	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/lib/fault"
)

// Options say which project to read and how. The zero value reads the project
// of the current folder, as `docker compose config` does.
type Options struct {
	Files            []string // -f: paths, references a Remote accepts, or "-"; none: COMPOSE_FILE, then the default names here and in the folders above
	ProjectName      string   // -p; "": COMPOSE_PROJECT_NAME, then the files' own, then the folder's
	ProjectDirectory string   // --project-directory; "": the folder of the first file
	EnvFiles         []string // --env-file; none: .env of the project directory
	Profiles         []string // --profile; none: COMPOSE_PROFILES
	Services         []string // the chosen services and what they depend on; none: all that the profiles enable

	Environment []string  // "KEY=value" of the process; nil: os.Environ()
	WorkingDir  string    // the current folder; "": os.Getwd()
	Stdin       io.Reader // what "-" reads; nil: os.Stdin
	Remotes     []Remote  // how references to other machines are fetched, in order

	AllResources   bool // keep networks, volumes, secrets, configs and models that no service uses
	KeepEnvFiles   bool // leave env_file as it is, unread
	Uninterpolated bool // leave variables as they are
	Unnormalized   bool // leave out the names and defaults the specification adds
	RelativePaths  bool // leave paths as they were written
	Unchecked      bool // accept references to what is not declared
	Unvalidated    bool // accept what is not in the specification (LoadModel, to list variables)
}

// Remote fetches a reference that is no local path (a Git repository, an OCI
// artifact) and is the way to other machines. It is compose-go's port.
type Remote interface {
	// Accept says whether the reference is for this Remote.
	Accept(reference string) bool
	// Load returns the path of a local copy of the Compose file.
	Load(ctx context.Context, reference string) (string, error)
	// Dir returns the folder that relative paths in that file start from.
	Dir(reference string) string
}

// Load reads a project. Errors are of lib/fault, class ErrInvalid (or
// ErrNotFound where there is no file), and begin with file and line where the
// cause is in a file.
func Load(ctx context.Context, o Options) (*app.App, error) {
	s, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	project, err := loader.LoadWithContext(ctx, s.details, s.configure)
	if err != nil {
		return nil, s.explain(err)
	}
	for _, f := range s.details.ConfigFiles {
		project.ComposeFiles = append(project.ComposeFiles, f.Filename)
	}
	if project, err = o.choose(project); err != nil {
		return nil, s.explain(err)
	}
	if !o.KeepEnvFiles {
		if project, err = project.WithServicesEnvironmentResolved(true); err != nil {
			return nil, s.explain(err)
		}
	}
	return &app.App{Project: project, EnvFiles: o.EnvFiles, Sources: s.sources, Warnings: s.warnings()}, nil
}

// LoadModel reads a project as the tree of mappings, lists and scalars that
// the files make together, before it is bound to types: what is left when
// variables stay as they are.
func LoadModel(ctx context.Context, o Options) (model map[string]any, warnings []string, err error) {
	s, err := open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	details := s.details
	if o.Uninterpolated {
		details.Environment = nil // a variable named alone ("MONEY") stays open too
	}
	model, err = loader.LoadModelWithContext(ctx, details, s.configure)
	if err != nil {
		return nil, nil, s.explain(err)
	}
	return model, s.warnings(), nil
}

// choose keeps the chosen services, what they depend on and what they use.
func (o Options) choose(p *types.Project) (*types.Project, error) {
	names := append(p.ServiceNames(), p.DisabledServiceNames()...)
	for _, name := range o.Services {
		if !slices.Contains(names, name) {
			return nil, NoService(name, names)
		}
	}
	p, err := p.WithServicesEnabled(o.Services...)
	if err != nil {
		return nil, err
	}
	if p, err = p.WithSelectedServices(o.Services); err != nil {
		return nil, err
	}
	if !o.AllResources {
		p = withoutUnused(p)
	}
	return p, nil
}

// withoutUnused drops networks, volumes, secrets, configs and models that
// nothing uses. compose-go looks at services alone: here pre_start hooks, jobs
// and the builds that those of services are made from stand as some for it.
func withoutUnused(p *types.Project) *types.Project {
	all := *p
	all.Services = maps.Clone(p.Services)
	add := func(c types.ContainerSpec, w types.WorkloadSpec) {
		name := fmt.Sprintf("\x00%d", len(all.Services)) // nobody's
		all.Services[name] = types.ServiceConfig{Name: name, ContainerSpec: c, WorkloadSpec: w}
	}
	seen := map[string]bool{}
	var parents func(b *types.BuildConfig)
	parents = func(b *types.BuildConfig) {
		if b == nil {
			return
		}
		for _, at := range b.AdditionalContexts {
			name, ok := strings.CutPrefix(at, types.ServicePrefix)
			if parent, err := p.GetDisabledService(name); ok && !seen[name] && err == nil {
				seen[name] = true
				add(types.ContainerSpec{}, types.WorkloadSpec{Build: parent.Build})
				parents(parent.Build)
			}
		}
	}
	for _, s := range p.Services {
		for _, h := range s.PreStart {
			add(h.ContainerSpec, types.WorkloadSpec{})
		}
		parents(s.Build)
	}
	for _, j := range p.Jobs {
		add(j.ContainerSpec, j.WorkloadSpec)
	}
	kept := all.WithoutUnnecessaryResources()
	maps.DeleteFunc(kept.Services, func(name string, _ types.ServiceConfig) bool { return strings.HasPrefix(name, "\x00") })
	return kept
}

// session is one reading of one project.
type session struct {
	Options
	details  types.ConfigDetails
	named    bool // a file says the project's name
	sources  map[string]app.Position
	noted    []string
	mu       sync.Mutex
	missing  map[string]bool // variables used and not set; guarded by mu
	profiles []string
}

// open finds the files, bounds and reads them, and translates old ones.
func open(ctx context.Context, o Options) (*session, error) {
	registerRaw()
	s := &session{Options: o, sources: map[string]app.Position{}, missing: map[string]bool{}}
	if s.WorkingDir == "" {
		wd, err := os.Getwd()
		if err != nil {
			return nil, fault.Internalf("find the current folder: %w", err)
		}
		s.WorkingDir = wd
	}
	if err := s.find(ctx); err != nil {
		return nil, err
	}
	if err := s.read(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// find settles the environment and which files are read. The order is docker
// compose's: the process's variables win; .env beside the first file may name
// the files; .env of the project directory comes last.
func (s *session) find(ctx context.Context) error {
	if s.Environment == nil {
		s.Environment = os.Environ()
	}
	env := types.Mapping{}
	for k, v := range utils.GetAsEqualsMap(s.Environment) {
		env[k] = v
	}
	if _, ok := env["PWD"]; !ok {
		env["PWD"] = s.WorkingDir
	}
	s.details.Environment = env
	if s.ProjectDirectory != "" {
		s.ProjectDirectory = s.abs(s.ProjectDirectory)
	}
	files := slices.Clone(s.Files)
	if err := s.dotenv(files); err != nil {
		return err
	}
	var origin string
	if len(files) == 0 {
		if list, ok := env[consts.ComposeFilePath]; ok {
			sep := env[consts.ComposePathSeparator]
			if sep == "" {
				sep = string(os.PathListSeparator)
			}
			files, origin = strings.Split(list, sep), " (from COMPOSE_FILE)"
		}
	}
	if len(files) == 0 {
		var err error
		if files, err = s.discover(); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return &fault.Error{Class: fault.ErrNotFound, Noun: "file", Msg: "no Compose file here or in a folder above; name one with -f, or make one of: " + strings.Join(defaultNames, ", ")}
	}
	if err := s.dotenv(files); err != nil {
		return err
	}
	if len(s.Profiles) == 0 {
		for _, p := range strings.Split(env[consts.ComposeProfiles], ",") {
			s.profiles = append(s.profiles, strings.TrimSpace(p))
		}
	} else {
		s.profiles = s.Profiles
	}
	return s.locate(ctx, files, origin)
}

// The names a Compose file has by default, most wanted first; fig.yml is the oldest.
var (
	defaultNames  = []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml", "fig.yml", "fig.yaml"}
	overrideNames = []string{"compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml"}
)

// discover looks for a file of a default name, here and upwards.
func (s *session) discover() ([]string, error) {
	dir := s.ProjectDirectory
	if dir == "" {
		dir = s.WorkingDir
	}
	for {
		found := present(dir, defaultNames)
		if len(found) > 0 {
			s.several(found)
			if override := present(dir, overrideNames); len(override) > 0 {
				s.several(override)
				return []string{found[0], override[0]}, nil
			}
			return found[:1], nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil, nil
		}
		dir = up
	}
}

func (s *session) several(found []string) {
	if len(found) > 1 {
		s.note("several Compose files are here: %s; %s is read", strings.Join(found, ", "), found[0])
	}
}

func present(dir string, names []string) (paths []string) {
	for _, n := range names {
		if p := filepath.Join(dir, n); isThere(p) {
			paths = append(paths, p)
		}
	}
	return paths
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dotenv adds the variables of the env files to the environment, which wins.
func (s *session) dotenv(files []string) error {
	env := s.details.Environment
	list := make([]string, 0, len(s.EnvFiles))
	for _, f := range s.EnvFiles {
		list = append(list, s.abs(f))
	}
	if len(list) == 0 {
		if off := utils.StringToBool(env[consts.ComposeDisableDefaultEnvFile]); off {
			return nil
		}
		f := filepath.Join(s.folder(files), ".env")
		info, err := os.Stat(f)
		switch {
		case err == nil && info.IsDir(), os.IsNotExist(err):
			return nil
		case os.IsPermission(err):
			s.note("%s cannot be read and is left out: %v", f, err)
			return nil
		case err != nil:
			return fault.Invalidf("read %s: %w", f, err)
		}
		list = []string{f}
	}
	for _, f := range list {
		if err := bounded(f); err != nil {
			return err
		}
	}
	found, err := dotenv.GetEnvFromFile(env, list)
	if err != nil {
		return fault.Invalidf("%w", err)
	}
	for k, v := range found {
		if _, ok := env[k]; !ok {
			env[k] = v
		}
	}
	return nil
}

// folder is the project directory: what was asked for, else where the first local file is.
func (s *session) folder(files []string) string {
	if s.ProjectDirectory != "" {
		return s.ProjectDirectory
	}
	for _, f := range files {
		if f == "-" {
			continue
		}
		if s.remote(f) != nil {
			break
		}
		return filepath.Dir(s.abs(f))
	}
	return s.WorkingDir
}

func (s *session) remote(reference string) Remote {
	for _, r := range s.Remotes {
		if r.Accept(reference) {
			return r
		}
	}
	return nil
}

func (s *session) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(s.WorkingDir, path)
}

// locate turns what was named into paths on this machine.
func (s *session) locate(ctx context.Context, files []string, origin string) error {
	s.details.WorkingDir = s.folder(files)
	fetched := false
	for _, f := range files {
		if f == "-" {
			s.details.ConfigFiles = append(s.details.ConfigFiles, types.ConfigFile{Filename: f})
			continue
		}
		if r := s.remote(f); r != nil {
			local, err := r.Load(ctx, f)
			if err != nil {
				return fault.Invalidf("fetch %s: %w", f, err)
			}
			if s.ProjectDirectory == "" && !fetched {
				s.details.WorkingDir, fetched = filepath.Dir(local), true
			}
			s.details.ConfigFiles = append(s.details.ConfigFiles, types.ConfigFile{Filename: local})
			continue
		}
		path := s.abs(f)
		info, err := os.Stat(path)
		switch {
		case os.IsNotExist(err):
			return &fault.Error{Class: fault.ErrNotFound, Noun: "file", ID: f, Msg: path + origin, Err: syscall.ENOENT}
		case err != nil:
			return fault.Invalidf("read %s%s: %w", path, origin, err)
		case info.IsDir():
			return fault.Invalidf("%s is a folder%s; name the Compose file in it", path, origin)
		}
		s.details.ConfigFiles = append(s.details.ConfigFiles, types.ConfigFile{Filename: path})
	}
	return nil
}

// configure hands our choices to compose-go.
func (s *session) configure(l *loader.Options) {
	l.SkipInterpolation = s.Uninterpolated
	l.SkipNormalization = s.Unnormalized
	l.SkipConsistencyCheck = s.Unchecked
	l.SkipValidation = s.Unvalidated
	l.ResolvePaths = !s.RelativePaths
	l.SkipResolveEnvironment = true // done once the services are chosen
	l.Profiles = s.profiles
	l.MaxNodeVisits = maxNodes
	for _, r := range s.Remotes {
		l.ResourceLoaders = append(l.ResourceLoaders, r)
	}
	loader.WithDiscardEnvFiles(l)
	l.Interpolate.Substitute = s.substitute
	if l.ResolvePaths {
		l.ConvertWindowsPaths = utils.StringToBool(s.details.Environment["COMPOSE_CONVERT_WINDOWS_PATHS"])
	}
	switch name := s.details.Environment[consts.ComposeProjectName]; {
	case s.ProjectName != "":
		l.SetProjectName(s.ProjectName, true)
	case name != "":
		l.SetProjectName(name, true)
	case !s.named:
		l.SetProjectName(loader.NormalizeProjectName(filepath.Base(s.details.WorkingDir)), false)
	}
}

// substitute replaces variables in one text and keeps the names of those that
// have no value.
func (s *session) substitute(text string, lookup template.Mapping) (string, error) {
	if !strings.ContainsRune(text, '$') {
		return text, nil
	}
	return template.SubstituteWithOptions(text, lookup, template.WithoutLogging, s.withMissing(lookup))
}

// withMissing notes variables that are replaced by nothing: those named
// without a default. A lookup alone cannot tell, as it also serves ${X:-y}.
func (s *session) withMissing(lookup template.Mapping) template.Option {
	return template.WithReplacementFunction(func(sub string, m template.Mapping, c *template.Config) (string, error) {
		if name, ok := plainVariable(sub); ok {
			if _, set := lookup(name); !set {
				s.mu.Lock()
				s.missing[name] = true
				s.mu.Unlock()
			}
		}
		return template.DefaultReplacementFunc(sub, m, c)
	})
}

// plainVariable gives X of $X and ${X}.
func plainVariable(sub string) (string, bool) {
	name, ok := strings.CutPrefix(sub, "$")
	if !ok || name == "" || name[0] == '$' {
		return "", false
	}
	if name[0] == '{' {
		if name[len(name)-1] != '}' {
			return "", false
		}
		name = name[1 : len(name)-1]
	}
	for _, r := range name {
		if r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			return "", false
		}
	}
	return name, true
}

func (s *session) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(s.noted, text) {
		s.noted = append(s.noted, text)
	}
}

func (s *session) warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.noted
	for _, name := range slices.Sorted(maps.Keys(s.missing)) {
		out = append(out, fmt.Sprintf("the variable %s is not set; it stands for nothing", name))
	}
	return out
}

// registerRaw adds the format `raw` of env_file, in which a value is taken as
// it stands, to compose-go's table, once a process.
var registerRaw = sync.OnceFunc(func() {
	dotenv.RegisterFormat("raw", func(r io.Reader, name string, vars map[string]string, lookup func(string) (string, bool)) error {
		lines, err := kvfile.ParseFromReader(r, lookup)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		for _, line := range lines {
			k, v, _ := strings.Cut(line, "=")
			vars[k] = v
		}
		return nil
	})
})

// explain makes a fault of an error and puts before it where its cause is.
func (s *session) explain(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	at, ok := s.place(err.Error())
	if !ok {
		at = s.blame(err)
	}
	if strings.HasPrefix(err.Error(), at.File) {
		return fault.Invalidf("%w", err)
	}
	return fault.Invalidf("%s: %w", at, err)
}

// blame finds the attribute whose value alone gives the same error, where the
// error does not name it; or else the first file.
func (s *session) blame(err error) app.Position {
	for _, f := range s.details.ConfigFiles {
		docs, bad := parse(f.Filename, f.Content)
		if bad != nil {
			continue
		}
		for _, top := range docs {
			services := find(top, "services")
			if services == nil || services.Kind != yaml.MappingNode {
				continue
			}
			for i := 0; i+1 < len(services.Content); i += 2 {
				if at, ok := s.blameService(f.Filename, services.Content[i].Value, target(services.Content[i+1]), err); ok {
					return at
				}
			}
		}
	}
	return app.Position{File: s.details.ConfigFiles[0].Filename}
}

func (s *session) blameService(file, name string, service *yaml.Node, err error) (app.Position, bool) {
	if service.Kind != yaml.MappingNode {
		return app.Position{}, false
	}
	for i := 0; i+1 < len(service.Content); i += 2 {
		var value any
		if service.Content[i+1].Decode(&value) != nil {
			continue
		}
		model, bad := interpolation.Interpolate(map[string]any{"v": value}, interpolation.Options{Substitute: s.substitute, LookupValue: s.details.LookupEnv})
		if bad != nil {
			continue
		}
		key := service.Content[i]
		_, bad = transform.Canonical(map[string]any{"services": map[string]any{name: map[string]any{key.Value: model["v"]}}}, false)
		if bad != nil && bad.Error() == err.Error() {
			return at(file, key), true
		}
	}
	return app.Position{}, false
}

// bracketed is how the decoder writes a name in a path: services[web].init.
var bracketed = regexp.MustCompile(`\[([^\]\d][^\]]*)\]`)

// place finds the longest path of the model that a message names.
func (s *session) place(message string) (app.Position, bool) {
	message = bracketed.ReplaceAllString(message, ".$1")
	best := ""
	for path := range s.sources {
		if len(path) > len(best) && strings.Contains(path, ".") && names(message, path) {
			best = path
		}
	}
	if best == "" {
		for _, word := range quoted(message) {
			for _, section := range []string{"services.", "jobs.", "networks.", "volumes.", "secrets.", "configs.", "models."} {
				if at, ok := s.sources[section+word]; ok {
					return at, true
				}
			}
		}
		return app.Position{}, false
	}
	return s.sources[best], true
}

// names says whether path is in the message as a whole word.
func names(message, path string) bool {
	i := strings.Index(message, path)
	if i < 0 {
		return false
	}
	rest := message[i+len(path):]
	return rest == "" || strings.ContainsRune(".:[]' \"\n", rune(rest[0]))
}

func quoted(message string) (words []string) {
	for i, part := range strings.Split(message, `"`) {
		if i%2 == 1 {
			words = append(words, part)
		}
	}
	return words
}
