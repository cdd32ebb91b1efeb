// Package maker makes images of the library: it asks a mirror for packages,
// lets an engine install them in a container without a network, and gives the
// engine back an image that depends on its inputs alone. The engine is any
// that answers the Docker API.
package maker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/client"

	"github.com/berth-project/berth/cli/library/layer"
	"github.com/berth-project/berth/cli/library/mirror"
	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/debian"
	"github.com/berth-project/berth/format/recipe"
)

// revision changes when the same inputs would give another image.
const revision = 1

// LabelInputs holds the digest of everything an image was made from.
const LabelInputs = "org.berth.library.inputs"

const labelStep = "org.berth.library.step"

// Options says how images are made. Library and Mirror are needed, Engine
// unless packages are only fetched.
type Options struct {
	Library fs.FS
	Engine  client.APIClient
	Mirror  *mirror.Mirror
	Locked  []*debian.Package // versions to use instead of the mirror's index; nil for the index
	Force   bool              // make the asked image even when it is up to date
	Replace bool              // take names from images that are not of the library
	Say     func(p Report)    // progress; may be nil
}

// Report is one line of progress.
type Report struct {
	Image, Step, Detail string
}

// Result is a made image.
type Result struct {
	Name     string            `json:"name"`
	ID       string            `json:"id"`
	Tags     []string          `json:"tags"`
	Size     int64             `json:"size"` // unpacked, all layers, in bytes
	Packages []*debian.Package `json:"packages"`
	Fresh    bool              `json:"fresh"` // made now; false when it was there

	epoch time.Time // no file of it is younger
}

// Maker makes images from one snapshot of the mirror.
type Maker struct {
	o    Options
	snap *mirror.Snapshot
	done map[string]*Result

	forced string          // image that Options.Force is about
	helper *debian.Package // see noSync
}

// plan is a recipe with its packages found.
type plan struct {
	recipe *recipe.Recipe
	stages []stage
	inputs string
	epoch  time.Time
	config dockerspec.DockerOCIImageConfig
	all    []*debian.Package
}

type stage struct {
	recipe.Stage
	base     *plan
	packages [][]*debian.Package // by step
}

// New opens the mirror, and removes what killed builds have left in the engine.
func New(ctx context.Context, o Options) (*Maker, error) {
	if o.Say == nil {
		o.Say = func(Report) {}
	}
	m := &Maker{o: o, done: map[string]*Result{}}
	if o.Engine != nil {
		if err := m.removeLeftovers(ctx); err != nil {
			return nil, fmt.Errorf("remove what an earlier build has left: %w", err)
		}
	}
	o.Say(Report{Step: "index", Detail: o.Mirror.Name()})
	var err error
	if o.Locked != nil {
		m.snap, err = o.Mirror.Locked(ctx, o.Locked)
	} else {
		m.snap, err = o.Mirror.Open(ctx)
	}
	if err != nil {
		return nil, err
	}
	if m.helper = m.snap.Index.Get(helperName); m.helper == nil {
		return nil, fmt.Errorf("the mirror has no package %s", helperName)
	}
	return m, nil
}

// Close leaves the mirror's cache.
func (m *Maker) Close() error { return m.o.Mirror.Close() }

// Fetch brings all that the images need into the cache.
func (m *Maker) Fetch(ctx context.Context, names ...string) error {
	for _, name := range names {
		p, err := m.plan(name, nil)
		if err != nil {
			return err
		}
		if err := m.fetch(ctx, name, append(p.needs(true), m.helper)); err != nil {
			return err
		}
	}
	return nil
}

// Lock lists all packages that go into images, for Options.Locked.
func (m *Maker) Lock(names ...string) ([]*debian.Package, error) {
	all := []*debian.Package{m.helper}
	for _, name := range names {
		p, err := m.plan(name, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, p.needs(true)...)
	}
	slices.SortFunc(all, func(a, b *debian.Package) int { return strings.Compare(a.Name, b.Name) })
	return slices.Compact(all), nil
}

// Make makes an image and those below it. An image that is there and was made
// from the same inputs is left alone.
func (m *Maker) Make(ctx context.Context, name string) (*Result, error) {
	p, err := m.plan(name, nil)
	if err != nil {
		return nil, err
	}
	m.forced = name
	if d := m.done[name]; d != nil && m.o.Force && !d.Fresh {
		delete(m.done, name) // it was found, as the base of another
	}
	return m.make(ctx, p)
}

func (m *Maker) make(ctx context.Context, p *plan) (*Result, error) {
	name := p.recipe.Name
	if d, ok := m.done[name]; ok {
		return d, nil
	}
	d, err := m.present(ctx, p)
	if err != nil {
		return nil, err
	}
	if d == nil {
		if d, err = m.build(ctx, p); err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
	}
	m.done[name] = d
	return d, nil
}

// needs are the packages of the image's own stages, and on demand of those below.
func (p *plan) needs(below bool) []*debian.Package {
	var all []*debian.Package
	for _, s := range p.stages {
		all = append(all, slices.Concat(s.packages...)...)
		if below && s.base != nil {
			all = append(all, s.base.needs(true)...)
		}
	}
	return all
}

// plan finds the packages of a recipe and of those below it.
func (m *Maker) plan(name string, above []string) (*plan, error) {
	if slices.Contains(above, name) {
		return nil, fmt.Errorf("recipe %s is made from itself", name)
	}
	r, err := recipe.Read(m.o.Library, name)
	if err != nil {
		return nil, err
	}
	p := &plan{recipe: r}
	fail := func(err error) (*plan, error) { return nil, fmt.Errorf("recipe %s: %w", name, err) }
	var inputs []string
	for _, rs := range r.Stages {
		s := stage{Stage: rs, packages: make([][]*debian.Package, len(rs.Steps))}
		var have []*debian.Package
		var config dockerspec.DockerOCIImageConfig
		if rs.From != "scratch" {
			if s.base, err = m.plan(rs.From, append(above, name)); err != nil {
				return nil, err
			}
			have = slices.Clone(s.base.all)
			config = cloneConfig(s.base.config)
			inputs = append(inputs, s.base.inputs)
		}
		for i, step := range rs.Steps {
			want := step.Install
			if step.Root {
				want = m.snap.Index.Base()
			}
			if len(want) == 0 {
				continue
			}
			if s.packages[i], err = debian.Resolve(m.snap.Index, want, have); err != nil {
				return fail(err)
			}
			have = append(have, s.packages[i]...)
		}
		if p.config, err = rs.Config(config); err != nil {
			return fail(err)
		}
		p.all = have
		p.stages = append(p.stages, s)
	}
	if last := r.Stages[len(r.Stages)-1]; last.From == "scratch" && len(last.Steps) > 0 && !last.Steps[0].Root {
		p.all = nil // files alone, without dpkg's database
	}
	p.inputs, err = p.digest(inputs)
	return p, err
}

// digest covers all that goes into an image.
func (p *plan) digest(below []string) (string, error) {
	type pkg struct{ Name, Version, SHA256 string }
	var in struct {
		Revision int
		Epoch    string
		Recipe   *recipe.Recipe
		Below    []string
		Packages [][][]pkg
	}
	in.Revision, in.Below, in.Epoch = revision, below, os.Getenv("SOURCE_DATE_EPOCH")
	// How an image is checked or described to people does not go into it, but
	// its labels do.
	r := *p.recipe
	r.Manifest = recipe.Manifest{Description: r.Manifest.Description, Licence: r.Manifest.Licence, Package: r.Manifest.Package, Tags: r.Manifest.Tags, Aliases: r.Manifest.Aliases}
	in.Recipe = &r
	for _, s := range p.stages {
		var steps [][]pkg
		for _, list := range s.packages {
			var all []pkg
			for _, x := range list {
				all = append(all, pkg{x.Name, string(x.Version), x.SHA256})
			}
			steps = append(steps, all)
		}
		in.Packages = append(in.Packages, steps)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// date is the moment no file is younger than: SOURCE_DATE_EPOCH where it is
// set, else when the newest package of it or below it was made.
func (p *plan) date(m *Maker, below time.Time) error {
	if v := os.Getenv("SOURCE_DATE_EPOCH"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("SOURCE_DATE_EPOCH %q: not a number of seconds", v)
		}
		p.epoch = time.Unix(n, 0).UTC()
		return nil
	}
	p.epoch = below
	for _, x := range p.needs(false) {
		when, err := m.packaged(x)
		if err != nil {
			return err
		}
		if when.After(p.epoch) {
			p.epoch = when
		}
	}
	return nil
}

func (m *Maker) packaged(p *debian.Package) (time.Time, error) {
	at, err := m.path(p)
	if err != nil {
		return time.Time{}, err
	}
	f, err := os.Open(at)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	return debian.DebTime(f)
}

// present gives the image that the engine already has of these inputs, under
// all its names. A name that an image of somebody else has is an error.
func (m *Maker) present(ctx context.Context, p *plan) (*Result, error) {
	var there *client.ImageInspectResult
	var lacking []string
	for _, tag := range p.tags() {
		found, err := m.o.Engine.ImageInspect(ctx, tag)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		label := ""
		if err == nil && found.Config != nil {
			label = found.Config.Labels[LabelInputs]
		}
		switch {
		case err == nil && label == "" && !m.o.Replace:
			return nil, fmt.Errorf(locale.Say("%s is there and not of the library: remove it, or take over its name with --replace", "%s ya existe y no es de la biblioteca: elimínela, o tome su nombre con --replace"), tag)
		case err == nil && label == p.inputs:
			there = &found
		default:
			lacking = append(lacking, tag)
		}
	}
	if there == nil || m.o.Force && p.recipe.Name == m.forced {
		return nil, nil
	}
	for _, tag := range lacking {
		if _, err := m.o.Engine.ImageTag(ctx, client.ImageTagOptions{Source: there.ID, Target: tag}); err != nil {
			return nil, err
		}
	}
	return p.found(*there)
}

func (p *plan) found(image client.ImageInspectResult) (*Result, error) {
	created, err := time.Parse(time.RFC3339Nano, image.Created)
	if err != nil {
		return nil, fmt.Errorf("image %s: created: %w", image.ID, err)
	}
	p.epoch = created.UTC()
	return p.result(image.ID, image.Size, false), nil
}

func (p *plan) result(id string, size int64, fresh bool) *Result {
	return &Result{Name: p.recipe.Name, ID: id, Tags: p.tags(), Size: size, Packages: p.all, Fresh: fresh, epoch: p.epoch}
}

// version is what the main package's authors call it: without epoch and Debian's revision.
func (p *plan) version() string {
	for _, s := range p.stages {
		for _, x := range slices.Concat(s.packages...) {
			if x.Name == p.recipe.Manifest.Package {
				return Upstream(x.Version)
			}
		}
	}
	return ""
}

// Upstream strips a Debian version of what Debian added to it.
func Upstream(v debian.Version) string {
	s := string(v)
	if _, rest, ok := strings.Cut(s, ":"); ok {
		s = rest
	}
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		s = s[:i]
	}
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789."))]
}

// tags are the names of an image: latest, and the version with fewer and fewer numbers.
func (p *plan) tags() []string {
	versions := []string{"latest"}
	parts := strings.Split(strings.Trim(p.version(), "."), ".")
	for n := len(parts); n > 0 && parts[0] != ""; n-- {
		versions = append(versions, strings.Join(parts[:n], "."))
	}
	versions = append(versions, p.recipe.Manifest.Tags...)
	var all []string
	for _, name := range append([]string{p.recipe.Name}, p.recipe.Manifest.Aliases...) {
		for _, v := range versions {
			// An alias is another program's name: its versions are not ours.
			if v == "latest" || name == p.recipe.Name {
				all = append(all, name+":"+v)
			}
		}
	}
	return all
}

// fetch brings packages into the cache.
func (m *Maker) fetch(ctx context.Context, image string, list []*debian.Package) error {
	var missing []*debian.Package
	var bytes, total int64
	for _, p := range list {
		if !m.snap.Has(p) && !slices.Contains(missing, p) {
			missing = append(missing, p)
			total += p.Size
		}
	}
	for i, p := range missing {
		m.o.Say(Report{image, "fetch", fmt.Sprintf(locale.Say("%d/%d %s %s (%.1f of %.1f MB)", "%d/%d %s %s (%.1f de %.1f MB)"), i+1, len(missing), p.Name, p.Version, float64(bytes)/1e6, float64(total)/1e6)})
		if _, err := m.snap.Get(ctx, p, nil); err != nil {
			return err
		}
		bytes += p.Size
	}
	return nil
}

// build makes the image's tree stage by stage and gives it to the engine.
func (m *Maker) build(ctx context.Context, p *plan) (*Result, error) {
	bases := make([]*Result, len(p.stages))
	var below time.Time
	for i, s := range p.stages {
		if s.base == nil {
			continue
		}
		b, err := m.make(ctx, s.base)
		if err != nil {
			return nil, err
		}
		if bases[i] = b; b.epoch.After(below) {
			below = b.epoch
		}
	}
	if err := m.fetch(ctx, p.recipe.Name, append(p.needs(false), m.helper)); err != nil {
		return nil, err
	}
	if err := p.date(m, below); err != nil {
		return nil, err
	}
	trees := map[string]*layer.Tree{}
	var tree *layer.Tree
	for i, s := range p.stages {
		var err error
		if tree, err = m.stage(ctx, p, s, bases[i], trees); err != nil {
			return nil, err
		}
		defer tree.Close()
		trees[s.Name] = tree
	}
	m.o.Say(Report{p.recipe.Name, "pack", fmt.Sprintf(locale.Say("%d files", "%d archivos"), tree.Len())})
	return m.pack(ctx, p, bases[len(bases)-1], tree)
}

// packages counts them, for people.
func packages(n int) string {
	if n == 1 {
		return locale.Say("1 package", "1 paquete")
	}
	return fmt.Sprintf(locale.Say("%d packages", "%d paquetes"), n)
}

// stage gives the tree that a stage adds to its base.
func (m *Maker) stage(ctx context.Context, p *plan, s stage, base *Result, trees map[string]*layer.Tree) (*layer.Tree, error) {
	tree, err := layer.New("")
	if err != nil {
		return nil, err
	}
	var j *job
	switch {
	case base != nil:
		j = &job{m: m, p: p, s: s, image: base.ID}
	case len(s.Steps) > 0 && s.Steps[0].Root:
		m.o.Say(Report{p.recipe.Name, "unpack", packages(len(s.packages[0]))})
		err = m.unpack(p, s.packages[0], tree)
		if err == nil {
			j = &job{m: m, p: p, s: s, root: tree}
		}
	}
	if err == nil && j != nil && s.runs() {
		next, ranErr := j.run(ctx)
		_ = tree.Close()
		if tree, err = next, ranErr; err != nil {
			return nil, err
		}
	}
	for _, step := range s.Steps {
		if err != nil {
			break
		}
		switch {
		case step.Copy != nil:
			err = trees[step.Copy.Stage].CopyTo(tree, step.Copy.From, step.Copy.To)
		case step.Rootfs && !s.runs():
			err = putFiles(tree, p)
		}
	}
	if err == nil {
		err = tree.Tidy(p.epoch)
	}
	if err != nil {
		_ = tree.Close()
		return nil, err
	}
	return tree, nil
}

// runs says whether a stage needs a container.
func (s stage) runs() bool {
	return slices.ContainsFunc(s.Steps, func(x recipe.Step) bool { return x.Root || x.Run != "" || len(x.Install) > 0 })
}

func cloneConfig(c dockerspec.DockerOCIImageConfig) dockerspec.DockerOCIImageConfig {
	var out dockerspec.DockerOCIImageConfig
	b, err := json.Marshal(c)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		panic(err) // plain data always does
	}
	return out
}
