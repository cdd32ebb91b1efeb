// Package script drives `berth compose` through small txtar scripts against
// one engine. It knows the programs by their command lines alone.
package script

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/url"
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
	retryLimit  = time.Minute
	scriptLimit = 5 * time.Minute
)

func TestComposeDoesWhatTheScriptsSay(t *testing.T) {
	kit.Need(t, "docker", "curl")
	ctx := context.Background()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	engine, err := kit.Start(ctx, "compose", false)
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, engine) })
	if err := engine.LoadImages(ctx); err != nil {
		t.Fatal(err, engine.Log())
	}
	s := &scripts{engine: engine, ctx: ctx, bin: bin}
	files, err := filepath.Glob("*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	// The group ends before the engine is stopped.
	t.Run("script", func(t *testing.T) {
		for _, file := range files {
			t.Run(strings.TrimSuffix(file, ".txtar"), func(t *testing.T) {
				t.Parallel()
				testscript.RunT(one{t}, testscript.Params{
					Files:               []string{file},
					Deadline:            time.Now().Add(scriptLimit),
					RequireExplicitExec: true,
					Setup:               s.setup,
					Cmds: map[string]func(*testscript.TestScript, bool, []string){
						"compose": composeCommand, "until": until, "interrupt": interrupt, "registry": registry,
					},
				})
			})
		}
	})
}

// programs makes berth, and docker-compose as its other name.
func programs() (string, error) {
	bin := filepath.Join(kit.Root(), "cli")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	berth := filepath.Join(bin, "berth")
	if dir := os.Getenv("BERTH_TEST_BIN"); dir != "" {
		if err := os.Symlink(filepath.Join(dir, "berth"), berth); err != nil {
			return "", err
		}
	} else {
		cmd := exec.Command("go", "build", "-o", berth, "../../../cmd/berth")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build berth: %w: %s", err, out)
		}
	}
	return bin, os.Symlink(berth, filepath.Join(bin, "docker-compose"))
}

// stop ends the engine, which must leave nothing behind.
func stop(t *testing.T, e *kit.Engine) {
	if err := e.Stop(); err != nil {
		t.Error(err)
	}
	if os.Getenv("BERTH_TEST_LOG") != "" {
		t.Log(e.Log())
	}
	err := kit.Until(10*time.Second, func() error {
		left, err := e.Leftovers()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// one runs one script in the test it is given.
type one struct{ *testing.T }

func (o one) Run(_ string, f func(testscript.T)) { f(o) }

// Parallel does nothing: the test is parallel already.
func (o one) Parallel() {}

func (o one) Skip(args ...any) {
	kit.CountSkip(strings.TrimSpace(fmt.Sprint(args...)))
	o.T.Skip(args...)
}

func (o one) Verbose() bool { return testing.Verbose() }

type scripts struct {
	engine *kit.Engine
	ctx    context.Context
	bin    string
	count  atomic.Int32
}

// setup gives every script a project's name and ten ports.
func (s *scripts) setup(env *testscript.Env) error {
	n := int(s.count.Add(1))
	h := fnv.New32a()
	_, _ = h.Write([]byte(env.WorkDir))
	id := fmt.Sprintf("c%d%x", n, h.Sum32()&0xffff)
	env.Setenv("ID", id)
	env.Setenv("COMPOSE_PROJECT_NAME", id)
	for i := range 10 {
		env.Setenv(fmt.Sprintf("PORT%d", i), fmt.Sprint(20000+n*10+i))
	}
	env.Setenv("DOCKER_HOST", "unix://"+s.engine.Socket)
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("PWD", env.WorkDir)
	env.Setenv("LANG", "C")
	env.Setenv("PATH", s.bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	env.Setenv("BIN", s.bin)
	env.Defer(func() { s.clean(id) })
	return nil
}

// clean removes what a script left, by its project's label.
func (s *scripts) clean(id string) {
	a := s.engine.API
	filter := url.QueryEscape(fmt.Sprintf(`{"label":["com.docker.compose.project=%s"]}`, id))
	var containers []struct{ ID string }
	if a.Call(s.ctx, "GET", "/containers/json?all=1&filters="+filter, nil, &containers) == nil {
		for _, c := range containers {
			_ = a.Call(s.ctx, "DELETE", "/containers/"+c.ID+"?force=1&v=1", nil, nil)
		}
	}
	var networks []struct{ ID string }
	if a.Call(s.ctx, "GET", "/networks?filters="+filter, nil, &networks) == nil {
		for _, n := range networks {
			_ = a.Call(s.ctx, "DELETE", "/networks/"+n.ID, nil, nil)
		}
	}
	var volumes struct{ Volumes []struct{ Name string } }
	if a.Call(s.ctx, "GET", "/volumes?filters="+filter, nil, &volumes) == nil {
		for _, v := range volumes.Volumes {
			_ = a.Call(s.ctx, "DELETE", "/volumes/"+v.Name+"?force=1", nil, nil)
		}
	}
}

// composeCommand runs berth compose: compose ARG…; its output is what stdout and stderr look at.
func composeCommand(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("berth", append([]string{"compose"}, args...)...)
	switch {
	case err == nil && neg:
		ts.Fatalf("unexpected success")
	case err != nil && !neg:
		ts.Fatalf("%v", err)
	}
}

// until runs a program until its output matches: until REGEX PROGRAM ARG…
func until(ts *testscript.TestScript, neg bool, args []string) {
	match, err := regexp.Compile("(?ms)" + args[0])
	ts.Check(err)
	last := ""
	err = kit.Until(retryLimit, func() error {
		cmd := exec.Command(filepathOf(ts, args[1]), args[2:]...)
		cmd.Dir = ts.Getenv("WORK")
		for _, k := range []string{"PATH", "HOME", "PWD", "LANG", "DOCKER_HOST", "COMPOSE_PROJECT_NAME"} {
			cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
		}
		out, _ := cmd.CombinedOutput()
		last = string(out)
		if match.MatchString(last) == neg {
			return fmt.Errorf("output against %s", args[0])
		}
		return nil
	})
	if err != nil {
		ts.Fatalf("until %v: %v\n%s", args, err, last)
	}
	fmt.Fprint(ts.Stdout(), last)
}

// filepathOf finds a program as the script would.
func filepathOf(ts *testscript.TestScript, name string) string {
	if own := filepath.Join(ts.Getenv("BIN"), name); name == "berth" || name == "docker-compose" {
		return own
	}
	return name
}

// interrupt runs berth compose in a terminal's place: interrupt REGEX N ARG…
// waits until its output matches, sends it N interrupts, and gives what it
// wrote and its exit code.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	match, err := regexp.Compile("(?ms)" + args[0])
	ts.Check(err)
	name := filepath.Join(ts.Getenv("WORK"), "interrupted.out")
	out, err := os.Create(name)
	ts.Check(err)
	defer out.Close()
	cmd := exec.Command(filepathOf(ts, "berth"), append([]string{"compose"}, args[2:]...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), out, out
	for _, k := range []string{"PATH", "HOME", "PWD", "LANG", "DOCKER_HOST", "COMPOSE_PROJECT_NAME"} {
		cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
	}
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	read := func() string {
		b, err := os.ReadFile(name)
		ts.Check(err)
		return string(b)
	}
	waitFor := func(re *regexp.Regexp) {
		if err := kit.Until(retryLimit, func() error {
			if !re.MatchString(read()) {
				return errors.New("not yet said")
			}
			return nil
		}); err != nil {
			_ = cmd.Process.Kill()
			ts.Fatalf("%v\n%s", err, read())
		}
	}
	waitFor(match)
	for range len(args[1]) {
		ts.Check(cmd.Process.Signal(os.Interrupt))
		if args[1] == "xx" {
			waitFor(regexp.MustCompile("Gracefully"))
		}
	}
	select {
	case err = <-ended:
	case <-time.After(retryLimit):
		_ = cmd.Process.Kill()
		ts.Fatalf("it did not end\n%s", read())
	}
	fmt.Fprintf(ts.Stdout(), "%s\nexit %d\n", read(), cmd.ProcessState.ExitCode())
	if (err != nil) != neg {
		ts.Fatalf("%v\n%s", err, read())
	}
}

// registry starts docker-registry on a free loopback port and sets $REG.
func registry(ts *testscript.TestScript, _ bool, _ []string) {
	program, err := exec.LookPath("docker-registry")
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	address := l.Addr().String()
	ts.Check(l.Close())
	work := ts.Getenv("WORK")
	config := filepath.Join(work, "registry.yml")
	ts.Check(os.WriteFile(config, []byte(fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %s}\n",
		filepath.Join(work, "registry"), address)), 0o644))
	cmd := exec.Command(program, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ts.Check(kit.Until(10*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	}))
	ts.Setenv("REG", address)
}
