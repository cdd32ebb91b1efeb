// Package crash kills Berth's programs and looks whether anything is lost.
package crash

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// containers that run while a program is killed.
var containers = map[bool]int{false: 20, true: 4}[kit.Slow()]

// limit of one wait.
const limit = 30 * time.Second

// program counts lines and serves a page, so that a loss would be seen.
const program = `mkdir -p /www; echo page >/www/index.html; httpd -p 80 -h /www; i=0; while :; do i=$((i+1)); echo line $i; usleep 200000; done`

// engine starts one with the test images.
func engine(t *testing.T) *kit.Engine {
	t.Helper()
	kit.Need(t, "docker")
	ctx := context.Background()
	e, err := kit.Start(ctx, t.Name(), false)
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.Log())
		}
		_ = e.Stop()
	})
	if err := e.LoadImages(ctx); err != nil {
		t.Fatal(err)
	}
	return e
}

// start gives an engine with containers that serve pages, and their addresses.
func start(t *testing.T) (*kit.Engine, []string) {
	t.Helper()
	e := engine(t)
	ctx := context.Background()
	var ports []string
	for i := range containers {
		name := fmt.Sprintf("crash%d", i)
		if _, err := e.Docker(ctx, "run", "-d", "--name", name, "-p", "127.0.0.1::80", "busybox:test", "sh", "-c", program); err != nil {
			t.Fatal(err)
		}
		port, err := e.Docker(ctx, "port", name, "80/tcp")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, strings.TrimSpace(port))
	}
	for _, p := range ports {
		if err := kit.Until(limit, func() error { return fetch(p) }); err != nil {
			t.Fatal(err)
		}
	}
	return e, ports
}

var client = &http.Client{Timeout: kit.Stretch(limit), Transport: &http.Transport{DisableKeepAlives: true}}

func fetch(address string) error {
	r, err := client.Get("http://" + address + "/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return nil
}

// traffic asks all ports in turn until stop is called, which gives the failures.
func traffic(ports []string) (stop func() (asked, failed int64, last error)) {
	var asked, failed atomic.Int64
	var last atomic.Value
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
			}
			asked.Add(1)
			if err := fetch(ports[i%len(ports)]); err != nil {
				failed.Add(1)
				last.Store(err)
			}
		}
	}()
	return func() (int64, int64, error) {
		close(quit)
		<-done
		err, _ := last.Load().(error)
		return asked.Load(), failed.Load(), err
	}
}

func running(t *testing.T, e *kit.Engine) int {
	t.Helper()
	out, err := e.Docker(context.Background(), "ps", "-q", "--filter", "status=running")
	if err != nil {
		t.Fatal(err)
	}
	return len(strings.Fields(out))
}

// whole looks whether a container's log counts without a gap or a repetition.
func whole(t *testing.T, e *kit.Engine, name string, atLeast int) {
	t.Helper()
	var text string
	err := kit.Until(4*limit, func() (err error) {
		if text, err = e.Docker(context.Background(), "logs", name); err != nil {
			return err
		}
		if n := strings.Count(text, "\n"); n < atLeast {
			return fmt.Errorf("%s: %d lines", name, n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if want := fmt.Sprintf("line %d", i+1); line != want {
			t.Fatalf("%s: line %d of the log is %q", name, i+1, line)
		}
	}
}

func TestKillingTheDaemonLosesNothing(t *testing.T) {
	e, ports := start(t)
	ctx := context.Background()
	stop := traffic(ports)
	for range 3 {
		e.Kill()
		began := time.Now()
		if err := e.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("the API is back after %v", time.Since(began).Round(time.Millisecond))
		if n := running(t, e); n != containers {
			t.Fatalf("%d of %d containers run", n, containers)
		}
	}
	for i := range containers {
		whole(t, e, fmt.Sprintf("crash%d", i), 20)
	}
	if asked, failed, err := stop(); failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed: %v", failed, asked, err)
	}
	empty(t, e)
}

func TestKillingTheKeeperStopsNoContainer(t *testing.T) {
	e, ports := start(t)
	ctx := context.Background()
	c, err := keeper.Connect(ctx, keeper.Options{Dir: filepath.Join(e.ExecRoot(), "keeper"), Binary: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Version(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	stop := traffic(ports)
	if err := syscall.Kill(v.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// A new keeper takes them over: exec, stop and exit codes work again.
	if err := kit.Until(limit, func() error { _, err := e.Docker(ctx, "exec", "crash0", "true"); return err }); err != nil {
		t.Fatal(err)
	}
	if n := running(t, e); n != containers {
		t.Fatalf("%d of %d containers run", n, containers)
	}
	whole(t, e, "crash1", 20)
	if asked, failed, err := stop(); failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed: %v", failed, asked, err)
	}
	empty(t, e)
}

// empty removes all containers, stops the engine and looks for what is left.
func empty(t *testing.T, e *kit.Engine) {
	t.Helper()
	drop(t, e)
	if err := e.Stop(); err != nil {
		t.Fatal(err)
	}
	var left []string
	if err := kit.Until(limit, func() (err error) {
		if left, err = e.Leftovers(); err == nil && len(left) > 0 {
			err = errors.New("something is left")
		}
		return err
	}); err != nil {
		t.Errorf("%v: %s", err, strings.Join(left, "\n"))
	}
}
