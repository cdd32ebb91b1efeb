package compose

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth/core/app"
)

// write puts files below a new folder and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, files map[string]string, o Options) (*app.App, error) {
	t.Helper()
	if o.WorkingDir == "" {
		o.WorkingDir = write(t, files)
	}
	if o.Environment == nil {
		o.Environment = []string{"HOME=/root"}
	}
	return Load(context.Background(), o)
}

func mustLoad(t *testing.T, files map[string]string, o Options) *app.App {
	t.Helper()
	a, err := load(t, files, o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestLoadReadsAProject(t *testing.T) {
	a := mustLoad(t, map[string]string{
		".env":         "TAG=1.27\n",
		"web.env":      "MODE=fast\n",
		"compose.yaml": "name: shop\nservices:\n  web:\n    image: nginx:${TAG}\n    env_file: web.env\n    ports: ['8080:80']\n  old:\n    image: x:${NONE}\n    profiles: [old]\n",
	}, Options{})
	web := a.Project.Services["web"]
	if a.Project.Name != "shop" || web.Image != "nginx:1.27" || *web.Environment["MODE"] != "fast" || len(web.EnvFiles) != 0 {
		t.Errorf("read %+v", web)
	}
	if got := a.Sources["services.web.image"]; filepath.Base(got.File) != "compose.yaml" || got.Line != 4 {
		t.Errorf("services.web.image was written at %v", got)
	}
	if _, ok := a.Project.Services["old"]; ok {
		t.Error("a service of a profile that is not chosen is in the project")
	}
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "NONE") {
		t.Errorf("warnings: %q", a.Warnings)
	}
}

// Not only what services use is needed.
func TestWhatHooksJobsAndParentsUseIsKept(t *testing.T) {
	a := mustLoad(t, map[string]string{"compose.yaml": `name: x
services:
  web:
    build: {dockerfile_inline: FROM middle, additional_contexts: {middle: "service:middle"}}
    pre_start: [{command: ["true"], secrets: [hook], volumes: ["hook:/v"], configs: [hook]}]
  middle: {build: {dockerfile_inline: FROM base, additional_contexts: {base: "service:base"}}}
  base: {build: {dockerfile_inline: FROM scratch, secrets: [parent]}}
  other: {image: x, volumes: ["other:/v"], secrets: [other]}
jobs:
  j: {image: x, triggers: {manual: true}, secrets: [job], volumes: ["job:/v"], networks: [job]}
secrets: {hook: {file: a}, parent: {file: b}, job: {file: c}, other: {file: d}}
configs: {hook: {content: x}, other: {content: x}}
volumes: {hook: {}, job: {}, other: {}}
networks: {job: {}, other: {}}
`}, Options{Services: []string{"web"}})
	p := a.Project
	got := fmt.Sprint(p.ServiceNames(), slices.Sorted(maps.Keys(p.Secrets)), slices.Sorted(maps.Keys(p.Configs)), slices.Sorted(maps.Keys(p.Volumes)), slices.Sorted(maps.Keys(p.Networks)))
	if want := "[web] [hook job parent] [hook] [hook job] [default job]"; got != want {
		t.Errorf("%s, should be %s", got, want)
	}
}

func TestErrorsNameFileLineAndNearestKey(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a key of a service":   {"services:\n  web:\n    image: x\n    enviroment: {A: b}\n", `compose.yaml:4: unknown key "enviroment" in services.web; did you mean "environment"?`},
		"a key at the top":     {"servics:\n  web: {image: x}\n", `compose.yaml:1: unknown key "servics" at the top; did you mean "services"?`},
		"a key deep below":     {"services:\n  web:\n    image: x\n    healthcheck:\n      tset: [CMD, x]\n", `compose.yaml:5: unknown key "tset" in services.web.healthcheck; did you mean "test"?`},
		"a key in a list":      {"services:\n  web:\n    image: x\n    volumes:\n    - type: bind\n      sorce: /x\n      target: /y\n", `compose.yaml:6: unknown key "sorce" in services.web.volumes[0]; did you mean "source"?`},
		"a key from an anchor": {"x-c: &c\n  imag: x\nservices:\n  web:\n    <<: *c\n", `compose.yaml:2: unknown key "imag" in services.web; did you mean "image"?`},
		"a wrong type":         {"services:\n  web:\n    image: x\n    ports: 80\n", "compose.yaml:4: "},
		"an unknown service":   {"services:\n  web:\n    image: x\n    depends_on: [db]\n", `compose.yaml:2: `},
		"broken syntax":        {"services:\n  web: [\n", "compose.yaml:"},
		"no mapping":           {"- a\n", "compose.yaml:1: a Compose file is a mapping"},
		"a missing variable":   {"services:\n  web:\n    image: ${X:?say which}\n", "compose.yaml:3: "},
		"first format":         {"web:\n  image: x\n  ports: ['80']\n  comand: y\n", `compose.yaml:4: unknown key "comand" in web; did you mean "command"?`},
		"first, later key":     {"web:\n  image: x\n  networks: [y]\n", "compose.yaml:3: web.networks needs the current format"},
		"first, no such link":  {"web:\n  image: x\n  links: [db]\n", "compose.yaml:3: service \"web\" has a link to \"db\""},
		"first, both":          {"web:\n  image: x\n  build: .\n", "compose.yaml:3: service \"web\" has both"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, map[string]string{"compose.yaml": c.text}, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestHostileFilesAreRefused(t *testing.T) {
	bomb := "x-a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for last, next := 'a', 'b'; next <= 'i'; last, next = next, next+1 {
		bomb += "x-" + string(next) + ": &" + string(next) + " [" + strings.Repeat("*"+string(last)+",", 9) + "*" + string(last) + "]\n"
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"an alias bomb":      {map[string]string{"compose.yaml": bomb + "services: {web: {image: x}}\n"}, "aliases make this more than"},
		"an alias cycle":     {map[string]string{"compose.yaml": "services: &s\n  web: *s\n"}, ""},
		"brackets":           {map[string]string{"compose.yaml": "x-a: " + strings.Repeat("[", 100000) + "\n"}, "nests more than"},
		"deep mappings":      {map[string]string{"compose.yaml": "x-a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "\n"}, "nests more than"},
		"a device":           {map[string]string{"compose.yaml": "include: [/dev/zero]\nservices: {web: {image: x}}\n"}, "not a regular file"},
		"an include cycle":   {map[string]string{"compose.yaml": "include: [b.yaml]\nservices: {web: {image: x}}\n", "b.yaml": "include: [compose.yaml]\nservices: {b: {image: x}}\n"}, "include cycle"},
		"an extends cycle":   {map[string]string{"compose.yaml": "services:\n  a: {extends: b}\n  b: {extends: a}\n"}, "Circular"},
		"a dependency cycle": {map[string]string{"compose.yaml": "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n"}, "cycle"},
		"first: extends":     {map[string]string{"compose.yaml": "a: {extends: {service: b}}\nb: {extends: {service: a}}\n"}, "extends itself"},
		"an included bomb":   {map[string]string{"compose.yaml": "include: [b.yaml]\nservices: {web: {image: x}}\n", "b.yaml": bomb + "services: {b: {image: x}}\n"}, "b.yaml:"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.files, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
