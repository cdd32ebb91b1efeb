package library

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth/test/kit"
)

// Small images that are made in a container each, one on the other.
const (
	smallest = "busybox" // of the library, what they stand on
	lower    = "lower"
	upper    = "upper"
)

// mark is on all that a build makes in an engine for a while.
const mark = "org.berth.library.cache"

// bench is a small library with a cache of its own: what a killed build leaves
// is removed by the next one that finds nobody else at work with the cache.
type bench struct {
	engine *kit.Engine
	args   []string
	tmp    string // the folder of temporary files of builds
}

func newBench(t *testing.T, engine *kit.Engine) *bench {
	dir := t.TempDir()
	b := &bench{engine: engine, tmp: filepath.Join(dir, "tmp")}
	recipes, own, lock := filepath.Join(dir, "recipes"), filepath.Join(dir, "cache"), filepath.Join(dir, "lock.json")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(b.tmp, 0o755))
	for _, name := range []string{"debian", smallest} {
		must(os.CopyFS(filepath.Join(recipes, name), os.DirFS(filepath.Join("..", "..", "library", name))))
	}
	for name, base := range map[string]string{lower: smallest, upper: lower} {
		must(os.Mkdir(filepath.Join(recipes, name), 0o755))
		must(os.WriteFile(filepath.Join(recipes, name, "manifest.json"), []byte(`{"description":{"en":"test","es":"prueba"},"licence":"Apache-2.0","limit_mb":200}`), 0o644))
		must(os.WriteFile(filepath.Join(recipes, name, "Dockerfile"), fmt.Appendf(nil, "FROM %s\nRUN echo %s >/%s\n", base, name, name), 0o644))
	}
	// The packages are those that were fetched for all tests.
	fetched, err := os.UserCacheDir()
	must(err)
	must(os.Mkdir(own, 0o755))
	for _, part := range []string{"release", "sha256"} {
		must(os.Symlink(filepath.Join(fetched, "berth", "library", part), filepath.Join(own, part)))
	}
	args := []string{"library", "build", "--recipes", recipes, "--cache", own, "--offline", "--format", "json"}
	berth(t, engine, append(args, "--write-lock", lock, smallest)...)
	b.args = append(args, "--lock", lock) // an index of few packages is read in no time
	return b
}

// build makes images to the end.
func (b *bench) build(t *testing.T, args ...string) []made {
	t.Helper()
	list := berth(t, b.engine, append(slices.Clone(b.args), args...)...)
	for i := range list {
		if list[i].ID == "" {
			t.Fatalf("%+v", list[i])
		}
	}
	return list
}

// testForce: an image that was found as the base of another is made again
// when it is asked for itself.
func (b *bench) testForce(t *testing.T) {
	first := b.build(t, upper, lower)
	again := b.build(t, "--force", upper, lower)
	if len(first) != 2 || len(again) != 2 {
		t.Fatalf("%+v, and then %+v", first, again)
	}
	for i, image := range again {
		if !image.Fresh {
			t.Errorf("%s was not made again", image.Name)
		}
		if image.ID != first[i].ID {
			t.Errorf("%s: %s, and then %s", image.Name, first[i].ID, image.ID)
		}
	}
}

// testKills kills the command, and the daemon, at several moments of a build:
// the next one removes what the killed one has left and makes the same image.
func (b *bench) testKills(t *testing.T) {
	first := b.build(t, lower)
	before := b.take(t)
	t.Setenv("TMPDIR", b.tmp)
	caught := 0
	for _, c := range []struct {
		event string
		kill  string
		next  bool // whether a build to the end follows
	}{
		{"create", "command", false},
		{"start", "command", false},
		{"die", "command", true},
		{"start", "daemon", false},
		{"commit", "command", true},
	} {
		t.Run(c.kill+" killed after "+c.event, func(t *testing.T) {
			caught += b.kill(t, c.event, c.kill == "daemon")
			if !c.next {
				return
			}
			again := b.build(t, "--force", lower)
			if len(again) != 1 || !again[0].Fresh || again[0].ID != first[0].ID {
				t.Errorf("%+v, and then %+v", first, again)
			}
			err := kit.Until(kit.Patience, func() error {
				if more := b.take(t).Without(before); len(more) > 0 {
					return errors.New(strings.Join(more, "\n"))
				}
				return nil
			})
			if err != nil {
				t.Errorf("left behind: %v", err)
			}
		})
	}
	if caught == 0 {
		t.Error("no killed build left anything: none was killed midway")
	}
}

// kill ends a build, or the daemon it talks to, as soon as its container has
// come to a moment. It gives how many things the build has left.
func (b *bench) kill(t *testing.T, event string, daemon bool) int {
	ctx, cancel := kit.Timeout()
	defer cancel()
	filters, err := json.Marshal(map[string][]string{"label": {mark}, "event": {event}, "type": {"container"}})
	if err != nil {
		t.Fatal(err)
	}
	events, err := b.engine.API.Do(ctx, "GET", "/events?filters="+url.QueryEscape(string(filters)), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	cmd := exec.CommandContext(ctx, os.Getenv(binVar), append(slices.Clone(b.args), "--force", lower)...)
	cmd.Env = b.engine.Env()
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen struct{ Action string }
	came := json.NewDecoder(events.Body).Decode(&seen)
	if daemon {
		b.engine.Kill()
	} else {
		_ = cmd.Process.Kill()
	}
	ended := cmd.Wait()
	if came != nil || seen.Action != event {
		t.Fatalf("no %s came: %v: %v\n%s", event, came, ended, log.String())
	}
	if ended == nil && event != "commit" { // little is left to do after that
		t.Error("the build went on to its end")
	}
	if daemon {
		t.Setenv("TMPDIR", "") // the daemon outlives this test and its folder
		if err := b.engine.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	containers, images := b.marked(t, "containers"), b.marked(t, "images")
	// What the one before has left was removed before this one began.
	if len(containers) > 1 {
		t.Errorf("%d builds have left containers", len(containers))
	}
	return len(containers) + len(images)
}

// marked lists the ids of containers or images that builds have left.
func (b *bench) marked(t *testing.T, noun string) []string {
	t.Helper()
	ctx, cancel := kit.Timeout()
	defer cancel()
	var list []struct{ ID string }
	if err := b.engine.API.Call(ctx, "GET", "/"+noun+"/json?all=1&filters="+url.QueryEscape(`{"label":["`+mark+`"]}`), nil, &list); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, one := range list {
		ids = append(ids, one.ID)
	}
	return ids
}

// take is the census of the engine, of its stores, and of temporary files.
func (b *bench) take(t *testing.T) kit.Census {
	t.Helper()
	c, err := b.engine.Take()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range c["process"] {
		_, c["process"][i], _ = strings.Cut(p, " ") // a daemon that came back has another number
	}
	var all []struct{ ID string }
	ctx, cancel := context.WithTimeout(t.Context(), kit.Stretch(kit.Patience))
	defer cancel()
	if err := b.engine.API.Call(ctx, "GET", "/containers/json?all=1", nil, &all); err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		c["container"] = append(c["container"], one.ID)
	}
	c["image"] = b.marked(t, "images")
	stores := filepath.Join(b.engine.DataRoot(), "containerd")
	for kind, at := range map[string]string{
		"snapshot": "io.containerd.snapshotter.v1.overlayfs/snapshots/*",
		"blob":     "io.containerd.content.v1.content/blobs/sha256/*",
		"ingest":   "io.containerd.content.v1.content/ingest/*",
	} {
		if c[kind], err = filepath.Glob(filepath.Join(stores, at)); err != nil {
			t.Fatal(err)
		}
	}
	if len(c["snapshot"]) == 0 || len(c["blob"]) == 0 {
		t.Fatalf("no snapshots or blobs below %s", stores)
	}
	if c["temporary"], err = filepath.Glob(filepath.Join(b.tmp, "*")); err != nil {
		t.Fatal(err)
	}
	return c
}
