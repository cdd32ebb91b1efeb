// Package build builds images with the real clients through small txtar
// scripts: docker with buildx and without, bake, docker-compose and
// python3-docker. It must not know how the builder works.
package build

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// Limits of one script and of a wait in it.
const (
	scriptLimit = 5 * time.Minute
	retryLimit  = 20 * time.Second
)

func TestTheBuilderDoesWhatTheScriptsSay(t *testing.T) {
	kit.Need(t, "docker", "git", "curl")
	ctx := context.Background()
	engine, err := kit.Start(ctx, "build", false)
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.End(t) })
	if err := engine.LoadImages(ctx); err != nil {
		t.Fatal(err, engine.Log())
	}
	s := &scripts{engine: engine, config: config(t)}
	files, err := filepath.Glob("*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	t.Run("script", func(t *testing.T) {
		for _, file := range files {
			name := strings.TrimSuffix(file, ".txtar")
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				testscript.RunT(kit.One{T: t}, testscript.Params{
					Files: []string{file}, Deadline: time.Now().Add(scriptLimit), RequireExplicitExec: true,
					Setup: s.setup, Condition: s.condition, Cmds: map[string]func(*testscript.TestScript, bool, []string){"retry": retry, "serve": serve, "git-repo": repository, "registry": kit.RegistryCommand, "engine": s.another, "archive": kit.ArchiveCommand},
				})
			})
		}
	})
}

// config is a folder of Docker's clients with buildx as their plugin.
func config(t *testing.T) string {
	dir := filepath.Join(kit.Root(), "docker")
	if err := os.MkdirAll(filepath.Join(dir, "cli-plugins"), 0o755); err != nil {
		t.Fatal(err)
	}
	if plugin := buildx(); plugin != "" {
		if err := os.Symlink(plugin, filepath.Join(dir, "cli-plugins", "docker-buildx")); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// buildx is where `make test-tools` puts the plugin; "" where it was not made.
func buildx() string {
	_, self, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(self), "..", "..", "bin", "tools", "docker-buildx")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

type scripts struct {
	engine *kit.Engine
	config string
	// scripts that ran, and engines beside the first
	count, engines atomic.Int32
}

// setup gives every script a name of its own and ports.
func (s *scripts) setup(env *testscript.Env) error {
	n := int(s.count.Add(1))
	h := fnv.New32a()
	_, _ = h.Write([]byte(env.WorkDir))
	env.Setenv("ID", fmt.Sprintf("t%d%x", n, h.Sum32()&0xffff))
	for i := range 3 {
		env.Setenv(fmt.Sprintf("PORT%d", i), fmt.Sprint(21000+n*10+i))
	}
	env.Setenv("DOCKER_HOST", "unix://"+s.engine.Socket)
	env.Setenv("SOCK", s.engine.Socket)
	env.Setenv("DOCKER_CONFIG", s.config)
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("PATH", filepath.Join(filepath.Dir(s.config), "bin")+":"+os.Getenv("PATH"))
	env.Setenv("BUILDKIT_PROGRESS", "plain")
	env.Setenv("NO_COLOR", "1")
	env.Setenv("BERTH", filepath.Join(os.Getenv("BERTH_TEST_BIN"), "berth"))
	return nil
}

// condition knows [buildx], [berth] and [compose] for clients that are there.
func (s *scripts) condition(name string) (bool, error) {
	switch name {
	case "buildx":
		return buildx() != "", nil
	case "berth":
		_, err := os.Stat(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "berth"))
		return err == nil, nil
	}
	return false, fmt.Errorf("unknown condition %s", name)
}
