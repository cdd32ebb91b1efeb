// Package script drives an engine with the real docker command through small
// txtar scripts. It owns the scripts' extra commands; it must not know how an
// engine works.
package script

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// Limits of one wait in a script, and of one script.
const (
	retryLimit  = 20 * time.Second
	scriptLimit = 3 * time.Minute
	peerLimit   = 5 * time.Minute // docker.io needs its time on a busy machine
)

func TestTheEngineDoesWhatTheScriptsSay(t *testing.T) {
	kit.Need(t, "docker", "curl", "ip", "script")
	ctx := context.Background()
	engine, err := kit.Start(ctx, "scripts", kit.Peer())
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
	s := &scripts{engine: engine, ctx: ctx}
	limit := scriptLimit
	if kit.Peer() {
		limit = peerLimit
	}
	files, err := filepath.Glob("*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	// The group ends before the engine is stopped.
	t.Run("script", func(t *testing.T) {
		for _, file := range files {
			t.Run(strings.TrimSuffix(file, ".txtar"), func(t *testing.T) {
				t.Parallel()
				testscript.RunT(kit.One{T: t}, testscript.Params{
					Files:               []string{file},
					Deadline:            time.Now().Add(kit.Stretch(limit)),
					RequireExplicitExec: true,
					Setup:               s.setup,
					Condition:           s.condition,
					Cmds: map[string]func(*testscript.TestScript, bool, []string){
						"retry": retry, "until": until, "api": s.api, "archive": kit.ArchiveCommand, "registry": kit.RegistryCommand,
					},
				})
			})
		}
	})
}

type scripts struct {
	engine *kit.Engine
	ctx    context.Context
	count  atomic.Int32
}

// setup gives every script a prefix for its names, a subnet and ten ports.
func (s *scripts) setup(env *testscript.Env) error {
	n := int(s.count.Add(1))
	h := fnv.New32a()
	_, _ = h.Write([]byte(env.WorkDir))
	id := fmt.Sprintf("t%d%x", n, h.Sum32()&0xffff)
	env.Setenv("ID", id)
	env.Setenv("NET", fmt.Sprintf("10.%d.%d", 100+n/250, n%250))
	for i := range 10 {
		env.Setenv(fmt.Sprintf("PORT%d", i), fmt.Sprint(20000+n*10+i))
	}
	env.Setenv("DOCKER_HOST", "unix://"+s.engine.Socket)
	env.Setenv("SOCK", s.engine.Socket)
	env.Setenv("DATAROOT", s.engine.DataRoot())
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("PATH", os.Getenv("PATH"))
	env.Setenv("DOCKER_CLI_HINTS", "false")
	env.Defer(func() { s.engine.RemoveAll(fmt.Sprintf(`{"name":[%q]}`, id)) })
	return nil
}

// condition knows [peer] for an engine that is Debian's dockerd 20.10,
// [cgroup1] for a host with version 1 controllers, [cgroup2] for one with the
// one tree of version 2, [apparmor] for one that has AppArmor on, [service]
// for an engine that systemd runs as berth.service, and [allcaps] for a host
// that gives the tests every capability.
func (s *scripts) condition(name string) (bool, error) {
	switch name {
	case "peer":
		return kit.Peer(), nil
	case "allcaps":
		// Without CAP_SYS_RESOURCE in the bounding set no engine can give it.
		status, err := os.ReadFile("/proc/self/status")
		return regexp.MustCompile(`CapBnd:\s+0*1ffffffffff\b`).Match(status), err
	case "cgroup2":
		_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
		return err == nil, nil
	case "apparmor":
		on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		return strings.TrimSpace(string(on)) == "Y", nil
	case "service":
		_, err := os.Stat("/run/systemd/system")
		return err == nil && s.engine.IsRunning, nil
	case "cgroup1":
		_, err := os.Stat("/sys/fs/cgroup/memory")
		return err == nil, nil
	}
	return false, fmt.Errorf("unknown condition %s", name)
}

// run executes one command of a retry with the script's environment.
func run(ts *testscript.TestScript, args []string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "DOCKER_HOST=" + ts.Getenv("DOCKER_HOST")}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// retry runs a program until it succeeds; "! retry" until it fails.
func retry(ts *testscript.TestScript, neg bool, args []string) {
	last := ""
	err := kit.Until(retryLimit, func() error {
		out, err := run(ts, args)
		last = out
		if neg && err == nil {
			return errors.New("still succeeds")
		}
		if neg {
			return nil
		}
		return err
	})
	if err != nil {
		ts.Fatalf("retry %v: %v\n%s", args, err, last)
	}
	fmt.Fprint(ts.Stdout(), last)
}

// until runs a program until its output matches: until REGEX PROGRAM ARG…
func until(ts *testscript.TestScript, neg bool, args []string) {
	match := regexpOf(ts, args[0])
	last := ""
	err := kit.Until(retryLimit, func() error {
		out, _ := run(ts, args[1:])
		last = out
		if match.MatchString(out) == neg {
			return fmt.Errorf("output against %s", args[0])
		}
		return nil
	})
	if err != nil {
		ts.Fatalf("until %v: %v\n%s", args, err, last)
	}
	fmt.Fprint(ts.Stdout(), last)
}
