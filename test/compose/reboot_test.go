package compose

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/test/kit"
)

// After a reboot what restart policies want to run starts in the order of
// depends_on, and by its conditions; what nobody wants stays down.
func TestAfterARebootServicesStartInTheirOrder(t *testing.T) {
	w := own(t)
	// Named against their order, so that no other order gives the same.
	w.mustUp(`services:
  a: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, restart: always, depends_on: {b: {condition: service_started}}}
  b: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, restart: unless-stopped, depends_on: {c: {condition: service_healthy}}}
  c:
    image: busybox:test
    command: sh -c "rm -f /ok; sleep 2; touch /ok; exec sleep 1000"
    stop_signal: KILL
    restart: always
    healthcheck: {test: [CMD, test, -f, /ok], interval: 100ms, retries: 1000}
  ended: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, depends_on: [c]}
  stopped: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, restart: unless-stopped, depends_on: [c]}
`, app.Policy{Wait: true})
	if _, err := w.e.Docker(context.Background(), "stop", w.name+"-stopped-1"); err != nil {
		t.Fatal(err)
	}
	before := w.ids()
	w.reboot()
	if err := kit.Until(time.Minute, func() error {
		if got := w.containers(); !slices.Contains(got, "a-1 running") {
			return fmt.Errorf("containers are %q", got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.want("a-1 running", "b-1 running", "c-1 running", "ended-1 exited", "stopped-1 exited")
	if now := w.ids(); !maps.Equal(before, now) {
		t.Errorf("containers were made anew: %v, then %v", before, now)
	}
	var state [3]struct {
		StartedAt time.Time
		Health    struct {
			Status string
		}
	}
	for i, name := range []string{"a", "b", "c"} {
		out, err := w.e.Docker(context.Background(), "inspect", "-f", "{{json .State}}", w.name+"-"+name+"-1")
		if err == nil {
			err = json.Unmarshal([]byte(out), &state[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a, b, c := state[0], state[1], state[2]
	if !c.StartedAt.Before(b.StartedAt) || !b.StartedAt.Before(a.StartedAt) {
		t.Errorf("started: c at %v, b at %v, a at %v", c.StartedAt, b.StartedAt, a.StartedAt)
	}
	// c cannot be healthy earlier, whatever the machine is doing.
	if c.Health.Status != "healthy" || b.StartedAt.Sub(c.StartedAt) < 2*time.Second {
		t.Errorf("b was started at %v, before c was healthy: %+v", b.StartedAt, c)
	}
}

// reboot ends all processes of the engine at once, and takes away what is not
// on disk: what is mounted, and the folder that a reboot empties.
func (w *world) reboot() {
	w.t.Helper()
	list, err := w.e.Docker(context.Background(), "ps", "-q")
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := w.e.Docker(context.Background(), append([]string{"inspect", "-f", "{{.State.Pid}}"}, strings.Fields(list)...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	ends := strings.Fields(out)
	programs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, path := range programs {
		line, _ := os.ReadFile(path) // it may be gone
		program, _, _ := bytes.Cut(line, []byte{0})
		if filepath.Base(string(program)) == "berth-keeper" && bytes.Contains(line, []byte(w.e.ExecRoot())) {
			ends = append([]string{filepath.Base(filepath.Dir(path))}, ends...)
		}
	}
	if len(ends) < 4 {
		w.t.Fatalf("a keeper and three containers are to end, found %q", ends)
	}
	w.e.Kill()
	w.e.API.Close()
	w.c.Close()
	for _, text := range ends {
		pid, err := strconv.Atoi(text)
		if err != nil || pid < 2 {
			w.t.Fatalf("%q is no process", text)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			w.t.Fatal(err)
		}
		if err := kit.Until(30*time.Second, func() error {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("process %d is still there: %v", pid, err)
			}
			return nil
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], w.e.Dir+"/") {
			points = append(points, f[4])
		}
	}
	slices.SortFunc(points, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			w.t.Fatal(point, err)
		}
	}
	if err := errors.Join(os.RemoveAll(w.e.ExecRoot()), w.e.Restart(context.Background())); err != nil {
		w.t.Fatal(err)
	}
}
