package maker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/client"

	"github.com/berth-project/berth/format/recipe"
)

// engine has images by name: their ids, and by id the label of the library.
type engine struct {
	client.APIClient
	names  map[string]string
	labels map[string]string
}

func (e *engine) ImageInspect(_ context.Context, name string, _ ...client.ImageInspectOption) (client.ImageInspectResult, error) {
	id, ok := e.names[name]
	if !ok {
		return client.ImageInspectResult{}, errdefs.ErrNotFound
	}
	var r client.ImageInspectResult
	r.ID, r.Created = id, "2026-01-02T03:04:05Z"
	r.Config = &dockerspec.DockerOCIImageConfig{}
	r.Config.Labels = map[string]string{LabelInputs: e.labels[id]}
	return r, nil
}

func (e *engine) ImageTag(_ context.Context, o client.ImageTagOptions) (client.ImageTagResult, error) {
	e.names[o.Target] = o.Source
	return client.ImageTagResult{}, nil
}

func TestAnImageIsPresentUnderAllItsNames(t *testing.T) {
	p := &plan{inputs: "now", recipe: &recipe.Recipe{Name: "mariadb", Manifest: recipe.Manifest{Aliases: []string{"mysql"}, Tags: []string{"lts"}}}}
	all := map[string]string{"mariadb:latest": "new", "mariadb:lts": "new", "mysql:latest": "new"}
	for name, c := range map[string]struct {
		names   map[string]string
		replace bool
		present bool
		fails   string
		after   map[string]string
	}{
		"nothing there":            {names: map[string]string{}, after: map[string]string{}},
		"all there":                {names: maps.Clone(all), present: true, after: all},
		"a name is lost":           {names: map[string]string{"mariadb:latest": "new", "mysql:latest": "new"}, present: true, after: all},
		"a name is an older one's": {names: map[string]string{"mariadb:latest": "new", "mariadb:lts": "old", "mysql:latest": "new"}, present: true, after: all},
		"only an older one":        {names: map[string]string{"mariadb:latest": "old"}, after: map[string]string{"mariadb:latest": "old"}},
		"an alias is a person's":   {names: map[string]string{"mariadb:latest": "new", "mysql:latest": "own"}, fails: "mysql:latest is there and not of the library", after: map[string]string{"mariadb:latest": "new", "mysql:latest": "own"}},
		"and may be taken over":    {names: map[string]string{"mariadb:latest": "new", "mysql:latest": "own"}, replace: true, present: true, after: all},
	} {
		e := &engine{names: c.names, labels: map[string]string{"new": "now", "old": "before"}}
		m := &Maker{o: Options{Engine: e, Replace: c.replace}}
		got, err := m.present(context.Background(), p)
		if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: error %v, want %q", name, err, c.fails)
		}
		if (got != nil) != c.present || got != nil && got.ID != "new" {
			t.Errorf("%s: %+v", name, got)
		}
		if d := cmp.Diff(c.after, e.names); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestAStageHasTheEnvironmentOfItsOwnBase(t *testing.T) {
	var final, base dockerspec.DockerOCIImageConfig
	final.Env, base.Env = []string{"PATH=/final"}, []string{"BASE=1"}
	j := job{p: &plan{config: final}, s: stage{Stage: recipe.Stage{Changes: []string{"ENV OWN=2"}}, base: &plan{config: base}}}
	env := j.env()
	if !slices.Contains(env, "BASE=1") || !slices.Contains(env, "OWN=2") || slices.Contains(env, "PATH=/final") {
		t.Error(env)
	}
}
