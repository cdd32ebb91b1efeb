package compose

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/lib/crash"
	"github.com/berth-project/berth/test/kit"
)

var every = flag.Int("every", 9, "kill the daemon at every n-th point of each plan, from a random one on; 1 is all of them")

// patient is a project of six services: what is made anew by turns are a
// network, services one by one with and without a port, and services at once.
func patient(n, port int) string {
	return fmt.Sprintf(`services:
  a: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {N: "%[1]d"}, volumes: ["data:/d", "/x"], networks: [net]}
  b: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {N: "%[1]d"}, depends_on: [a], networks: [net, fixed]}
  c: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {N: "%[1]d"}, networks: [fixed], deploy: {replicas: 2, update_config: {monitor: 10ms, order: stop-first}}}
  d: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, network_mode: "service:a"}
  e: {image: "server:test", command: [/server, "%[1]d"], stop_signal: KILL, networks: [fixed], deploy: {update_config: {order: start-first, monitor: 10ms}}, ports: ["127.0.0.1:%[2]d:80"]}
  f: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, networks: [net]}
networks: {net: {labels: {turn: "%[1]d"}}, fixed: {}}
volumes: {data: {}}
`, n, port)
}

var patientContainers = []string{"a-1 running", "b-1 running", "c-1 running", "c-2 running", "d-1 running", "e-1 running", "f-1 running"}

// settled tells of all that is not as the n-th project wants it.
func (w *world) settled(n, port int) error {
	got := w.containers()
	// A kill may have left the second of c alone: the next is the third, as docker compose counts.
	if i := slices.Index(got, "c-3 running"); i > 0 && got[i-1] == "c-2 running" {
		got[i-1], got[i] = "c-1 running", "c-2 running"
	}
	if !slices.Equal(got, patientContainers) {
		return fmt.Errorf("containers are %q", w.containers())
	}
	if steps := w.plan(patient(n, port), app.Policy{}); len(steps) != 0 {
		return fmt.Errorf("still to do: %q", steps)
	}
	d, err := w.c.Inspect(context.Background(), w.name)
	if err != nil {
		return err
	}
	if d.Operation != "" || len(d.Observed.Networks) != 2 || len(d.Observed.Volumes) != 1 {
		return fmt.Errorf("there are networks %+v, volumes %+v, operation %q", d.Observed.Networks, d.Observed.Volumes, d.Operation)
	}
	keys := map[string]string{} // of networks, by id
	for _, v := range d.Observed.Networks {
		keys[v.ID] = v.Key
	}
	for _, c := range d.Observed.Containers {
		var on []string
		for _, id := range c.Networks {
			on = append(on, keys[id])
		}
		slices.Sort(on)
		want := map[string][]string{"b": {"fixed", "net"}, "c": {"fixed"}, "d": nil, "e": {"fixed"}}
		wanted, ok := want[c.Service]
		if !ok {
			wanted = []string{"net"}
		}
		if !slices.Equal(on, wanted) || c.Unpublished {
			return fmt.Errorf("%s is on %q; without its ports: %t", c.Name, on, c.Unpublished)
		}
	}
	// The server may still be about to listen.
	return kit.Until(10*time.Second, func() error {
		text, err := get(port)
		if err == nil && text != fmt.Sprint(n) {
			err = fmt.Errorf("the port leads to %q, not to %d", text, n)
		}
		return err
	})
}

func (w *world) again(env ...string) {
	w.t.Helper()
	w.e.Kill()
	w.e.API.Close()
	w.c.Close()
	if err := w.e.Restart(context.Background(), env...); err != nil {
		w.t.Fatal(err)
	}
}

// TestAKillAtEachPointOfAPlanConverges lets the daemon die before and after
// each step and between the writes of its journal, of a first up and of one
// that changes much. The next daemon must bring it to its end.
func TestAKillAtEachPointOfAPlanConverges(t *testing.T) {
	w := own(t)
	w.loadServer()
	port, n := freePort(t), 0
	for _, first := range []bool{true, false} {
		kills := 0
		for at, survived := 1+rand.IntN(*every), false; !survived; at += *every {
			if first {
				if _, err := w.c.Down(context.Background(), w.name, app.DownRequest{Volumes: true}, nil); n > 0 && err != nil {
					t.Fatal(err)
				}
			}
			w.again(fmt.Sprintf("%s=%d", crash.Variable, at))
			n++
			r, err := w.c.Apply(context.Background(), app.ApplyRequest{Document: w.document(patient(n, port)), Comment: fmt.Sprint(n)}, nil)
			survived = r.Revision > 0 // the end of it was heard of
			if survived != (err == nil) {
				t.Fatalf("up %d, to be killed at point %d: %+v %v", n, at, r, err)
			}
			w.again()
			w.settle()
			list, err := w.c.History(context.Background(), w.name, false)
			if err != nil && at > 2 {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(list, func(r app.Revision) bool { return r.Current && r.Comment == fmt.Sprint(n) }) {
				if at > 2 {
					t.Fatalf("killed at point %d, the wish is forgotten", at)
				}
				// It died before the wish was on disk: nobody was told of it.
				w.mustUp(patient(n, port), app.Policy{})
			}
			if err := w.settled(n, port); err != nil {
				t.Fatalf("first %t, killed at point %d: %v", first, at, err)
			}
			kills++
		}
		t.Logf("first up %t: %d daemons", first, kills)
		if kills < 3 {
			t.Errorf("only %d points were tried", kills)
		}
	}
}

func (w *world) loadServer() {
	w.t.Helper()
	if _, err := w.e.Docker(context.Background(), "image", "inspect", "server:test"); err == nil {
		return // another test has
	}
	program, err := kit.GoProgram(w.dir, "server", server)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.e.API.Load(context.Background(), "server:test", kit.Config{Cmd: []string{"/server", "one"}}, []kit.File{{Path: "server", Body: program, Mode: 0o755}}); err != nil {
		w.t.Fatal(err)
	}
}

// TestAKilledClientChangesNothing kills the command line at one line of its
// output after the other: what it had begun is done all the same.
func TestAKilledClientChangesNothing(t *testing.T) {
	w := engine(t)
	berth := filepath.Join(os.Getenv("BERTH_TEST_BIN"), "berth")
	if os.Getenv("BERTH_TEST_BIN") == "" {
		kit.Skip(t, "%v: BERTH_TEST_BIN does not name the programs", kit.ErrMissing)
	}
	w.loadServer()
	port := freePort(t)
	for n, lines := range []int{1, 3, 8, 20} {
		file := filepath.Join(w.dir, "compose.yaml")
		if err := os.WriteFile(file, []byte(patient(n, port)), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(berth, "compose", "-p", w.name, "-f", file, "--progress", "plain", "up", "-d")
		cmd.Env = w.e.Env()
		out, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		text := bufio.NewScanner(out)
		for i := 0; i < lines && text.Scan(); i++ {
		}
		_ = cmd.Process.Kill()
		for text.Scan() {
		}
		_ = cmd.Wait()
		w.settle()
		if err := w.settled(n, port); err != nil {
			t.Fatalf("client killed after line %d: %v", lines, err)
		}
	}
}
