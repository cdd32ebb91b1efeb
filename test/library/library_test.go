// Package library makes the official images with the real command and a real
// engine, examines them, and runs applications that stand on them (app/).
// Packages are fetched before the tests enter their namespaces, where no mirror
// can be reached; what the applications' own builds fetch comes by a window.
package library

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cli/library/checkup"
	"github.com/berth-project/berth/test/kit"
)

var (
	all    = flag.Bool("all", false, "make and examine all images of the library, not a few")
	chosen = flag.String("images", "", "make and examine these images, separated by commas")
)

// few are images that are made quickly.
var few = []string{"debian", "busybox", "hello-world", "redis", "memcached", "nginx", "httpd", "python"}

// Variables that the outer stage of the test leaves to the inner one.
const (
	binVar  = "BERTH_LIBRARY_TEST_BIN"
	skipVar = "BERTH_LIBRARY_TEST_SKIP"
)

// fetchLimit bounds the wait for a mirror.
const fetchLimit = 20 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("BERTH_TEST_STAGE") == "" && os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "berth-library-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		reason := prepare(dir)
		_ = os.Setenv(skipVar, reason)
		code := kit.Main(m)
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}
	os.Exit(kit.Main(m))
}

// prepare finds or builds the command and fetches packages; it gives the
// reason why that cannot be.
func prepare(dir string) string {
	berth := filepath.Join(os.Getenv("BERTH_TEST_BIN"), "berth")
	if os.Getenv("BERTH_TEST_BIN") == "" {
		berth = filepath.Join(dir, "berth")
		_, self, _, _ := runtime.Caller(0)
		cmd := exec.Command("go", "build", "-o", berth, "./cmd/berth")
		cmd.Dir = filepath.Join(filepath.Dir(self), "..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Sprintf("berth was not built: %v: %s", err, out)
		}
	}
	_ = os.Setenv(binVar, berth)
	if err := openWindow(dir); err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	args := append([]string{"library", "fetch"}, asked()...)
	if out, err := exec.CommandContext(ctx, berth, args...).CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "packages cannot be fetched: " + lines[len(lines)-1]
	}
	return ""
}

// asked names the images to make, none for all.
func asked() []string {
	switch {
	case *all:
		return nil
	case *chosen != "":
		return strings.Split(*chosen, ",")
	}
	return few
}

// made is what `berth library build` and `test` say of an image.
type made struct {
	Name   string
	ID     string
	Size   int64
	Fresh  bool
	Checks []checkup.Check
}

// berth runs the command against an engine, without a network, and decodes what it prints.
func berth(t *testing.T, e *kit.Engine, args ...string) []made {
	t.Helper()
	cmd := exec.Command(os.Getenv(binVar), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.Socket)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	var list []made
	if bad := json.Unmarshal(out.Bytes(), &list); bad != nil {
		t.Fatalf("berth %v: %v\n%s", args, err, log.String())
	}
	return list
}

func TestTheLibrary(t *testing.T) {
	if reason := os.Getenv(skipVar); reason != "" {
		kit.Skip(t, "%s", reason)
	}
	engine, err := kit.Start(context.Background(), "library", false)
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("image", func(t *testing.T) { examineImages(t, engine) })
	t.Run("small", func(t *testing.T) {
		b := newBench(t, engine)
		t.Run("force", b.testForce)
		t.Run("kill", b.testKills)
	})
	t.Run("application", func(t *testing.T) { runApplications(t, engine) })
}

// examineImages: the images pass their checks, and are the same when they are
// made again.
func examineImages(t *testing.T, engine *kit.Engine) {
	args := append([]string{"library", "test", "--offline", "--format", "json"}, asked()...)
	if *all {
		args = append(args, "--all")
	}
	images := berth(t, engine, args...)
	if len(images) < len(asked()) || len(images) == 0 {
		t.Fatalf("%d images were examined", len(images))
	}
	ids := map[string]string{}
	var names []string
	for _, image := range images {
		ids[image.Name], names = image.ID, append(names, image.Name)
		t.Run(image.Name, func(t *testing.T) {
			if len(image.Checks) != len(checkup.Names) {
				t.Errorf("%d checks were made, should be %d", len(image.Checks), len(checkup.Names))
			}
			for _, c := range image.Checks {
				if c.Verdict == checkup.Bad {
					t.Errorf("%s: %s", c.Name, c.Detail)
				}
			}
		})
	}
	sample := names[0]
	if slices.Contains(names, "redis") {
		sample = "redis"
	}
	again := []string{sample}
	if *all || *chosen != "" {
		again = names
	}
	t.Run("made twice, the digest is the same", func(t *testing.T) {
		for _, image := range berth(t, engine, append([]string{"library", "build", "--offline", "--force", "--format", "json"}, again...)...) {
			if !image.Fresh {
				t.Errorf("%s was not made again", image.Name)
			}
			if ids[image.Name] != image.ID {
				t.Errorf("%s: %s, and then %s", image.Name, ids[image.Name], image.ID)
			}
		}
	})
	lock := filepath.Join(t.TempDir(), "lock")
	t.Run("what is up to date is left alone", func(t *testing.T) {
		for _, image := range berth(t, engine, "library", "build", "--offline", "--write-lock", lock, "--format", "json", sample) {
			if image.Fresh || ids[image.Name] != image.ID {
				t.Errorf("%+v", image)
			}
		}
	})
	t.Run("locked versions give the same image", func(t *testing.T) {
		for _, image := range berth(t, engine, "library", "build", "--offline", "--lock", lock, "--format", "json", sample) {
			if image.Fresh || ids[image.Name] != image.ID {
				t.Errorf("%+v", image)
			}
		}
	})
}
