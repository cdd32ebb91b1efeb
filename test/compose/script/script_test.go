// Package script drives `berth compose` through small txtar scripts against
// one engine. It knows the programs by their command lines alone.
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
	"slices"
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
	t.Cleanup(func() { engine.End(t) })
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
				testscript.RunT(kit.One{T: t}, testscript.Params{
					Files:               []string{file},
					Deadline:            time.Now().Add(scriptLimit),
					RequireExplicitExec: true,
					Setup:               s.setup,
					Cmds: map[string]func(*testscript.TestScript, bool, []string){
						"compose": composeCommand, "until": until, "interrupt": interrupt, "registry": kit.RegistryCommand,
						"compose5": real("COMPOSE5"), "compose1": real("COMPOSE1"), "snapshot": snapshot,
					},
					Condition: condition,
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
	// The real clients: docker compose v5.6.0 and docker-compose 1.29.2; "" where one is missing.
	env.Setenv("COMPOSE5", found(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "tools", "docker-compose")))
	env.Setenv("COMPOSE1", found("/usr/bin/docker-compose"))
	env.Setenv("BUILDX", found(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "tools", "docker-buildx")))
	env.Defer(func() { s.engine.RemoveAll(fmt.Sprintf(`{"label":["com.docker.compose.project=%s"]}`, id)) })
	return nil
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

// found gives the path of a program, "" where it is not there.
func found(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// condition tells of the real clients: [compose5], [compose1], [buildx]. Scripts skip by themselves where they are missing.
func condition(cond string) (bool, error) {
	switch cond {
	case "compose5":
		return found(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "tools", "docker-compose")) != "", nil
	case "buildx":
		return found(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "tools", "docker-buildx")) != "", nil
	case "compose1":
		return found("/usr/bin/docker-compose") != "", nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// real runs one of the real clients: compose5 ARG… or compose1 ARG….
func real(variable string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := ts.Exec(ts.Getenv(variable), args...)
		switch {
		case err == nil && neg:
			ts.Fatalf("unexpected success")
		case err != nil && !neg:
			ts.Fatalf("%v", err)
		}
	}
}

// snapshot writes what there is of the project, with ids and times of start,
// into a file: two that are equal say that nothing was made anew or started
// again between them. snapshot FILE [SERVICE…]
func snapshot(ts *testscript.TestScript, _ bool, args []string) {
	filter := "label=com.docker.compose.project=" + ts.Getenv("COMPOSE_PROJECT_NAME")
	docker := func(args ...string) string {
		cmd := exec.Command("docker", args...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+ts.Getenv("DOCKER_HOST"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			ts.Fatalf("docker %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	var b strings.Builder
	inspect := func(kind, format string, ids string) {
		if ids := strings.Fields(ids); len(ids) > 0 {
			lines := strings.Split(strings.TrimSpace(docker(append([]string{kind, "inspect", "-f", format}, ids...)...)), "\n")
			slices.Sort(lines)
			fmt.Fprintf(&b, "%s\n", strings.Join(lines, "\n"))
		}
	}
	container := "{{.Name}} {{.Id}} {{.State.Status}} {{.State.StartedAt}} {{.RestartCount}}"
	if services := args[1:]; len(services) > 0 {
		for _, s := range services {
			inspect("container", container, docker("ps", "-aq", "--filter", filter, "--filter", "label=com.docker.compose.service="+s))
		}
	} else {
		inspect("container", container, docker("ps", "-aq", "--filter", filter))
		inspect("network", "{{.Name}} {{.Id}}", docker("network", "ls", "-q", "--filter", filter))
		inspect("volume", "{{.Name}} {{.CreatedAt}}", docker("volume", "ls", "-q", "--filter", filter))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
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
