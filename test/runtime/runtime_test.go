// Package runtime runs containers with another OCI runtime than the keeper.
package runtime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// limit of one wait.
const limit = 20 * time.Second

func start(t *testing.T) *kit.Engine {
	t.Helper()
	kit.Need(t, "docker", "runc")
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	e, err := kit.Start(ctx, t.Name(), false, "--add-runtime", "other="+runc)
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
		err := kit.Until(limit, func() error {
			left, err := e.Leftovers()
			if err == nil && len(left) > 0 {
				err = errors.New("left behind: " + strings.Join(left, "\n"))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(e.Log())
		}
	})
	if err := e.LoadImages(ctx); err != nil {
		t.Fatal(err)
	}
	return e
}

func docker(t *testing.T, e *kit.Engine, args ...string) string {
	t.Helper()
	out, err := e.Docker(context.Background(), args...)
	if err != nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

func TestAnotherRuntimeRunsContainers(t *testing.T) {
	e := start(t)
	other := func(args ...string) []string { return append([]string{"run", "--runtime", "other"}, args...) }
	if got := docker(t, e, other("--rm", "busybox:test", "echo", "hello")...); got != "hello" {
		t.Errorf("%q", got)
	}
	if _, err := e.Docker(context.Background(), other("--rm", "busybox:test", "nope")...); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("a missing program: %v", err)
	}
	if _, err := e.Docker(context.Background(), "run", "--runtime", "nobody", "busybox:test"); err == nil || !strings.Contains(err.Error(), "unknown or invalid runtime name: nobody") {
		t.Errorf("an unknown runtime: %v", err)
	}
	docker(t, e, other("-d", "--name", "lives", "-m", "64m", "busybox:test", "sh", "-c", `trap "echo bye; exit 7" TERM; echo up; while :; do sleep 0.1; done`)...)
	if got := docker(t, e, "exec", "lives", "cat", "/proc/1/comm"); got != "sh" {
		t.Errorf("exec: %q", got)
	}
	docker(t, e, "pause", "lives")
	docker(t, e, "unpause", "lives")
	if got := docker(t, e, "stats", "--no-stream", "--format", "{{.MemUsage}}", "lives"); !strings.HasSuffix(got, "/ 64MiB") {
		t.Errorf("stats: %q", got)
	}

	// The daemon goes; the container stays.
	pid := docker(t, e, "inspect", "-f", "{{.State.Pid}}", "lives")
	e.Kill()
	if err := e.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := docker(t, e, "inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "lives"); got != pid+" running" {
		t.Errorf("after a restart: %q, was %s", got, pid)
	}
	docker(t, e, "stop", "lives")
	if got := docker(t, e, "inspect", "-f", "{{.State.ExitCode}}", "lives"); got != "7" {
		t.Errorf("exit code %s", got)
	}
	if got := docker(t, e, "logs", "lives"); got != "up\nbye" {
		t.Errorf("logs: %q", got)
	}
	docker(t, e, "rm", "lives")
	if left, err := os.ReadDir(filepath.Join(e.ExecRoot(), "task", "io")); err != nil || len(left) > 0 {
		t.Errorf("pipes left: %v %v", left, err)
	}
}

func TestAnExitWithoutADaemonIsFoundAgain(t *testing.T) {
	e := start(t)
	docker(t, e, "run", "-d", "--runtime", "other", "--name", "ends", "busybox:test", "sh", "-c", "while [ ! -e /end ]; do sleep 0.05; done; exit 5")
	pid := docker(t, e, "inspect", "-f", "{{.State.Pid}}", "ends")
	root := filepath.Join("/proc", pid, "root")
	e.Kill()
	if err := os.WriteFile(filepath.Join(root, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := kit.Until(limit, func() error {
		if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			return errors.New("it still runs")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := e.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := kit.Until(limit, func() error {
		if got := docker(t, e, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends"); got != "exited 5" {
			return errors.New(got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	docker(t, e, "rm", "ends")
}
