package compose

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth/core/app"
)

// server answers with its word. Told to end, it takes what is on its way to it
// and then no more, as servers that are replaced must.
const server = `package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if os.Args[1] == "check" {
		if r, err := http.Get("http://127.0.0.1/"); err != nil || r.StatusCode != 200 {
			os.Exit(1)
		}
		return
	}
	s := &http.Server{Addr: ":80", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Args[1]) })}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go s.ListenAndServe()
	<-end
	time.Sleep(time.Second)
	s.Shutdown(context.Background())
}
`

func TestARollingUpLosesNoRequest(t *testing.T) {
	w := engine(t)
	w.loadServer()
	port := freePort(t)
	file := func(version string) string {
		return fmt.Sprintf(`services:
  web:
    image: server:test
    command: [/server, %q]
    ports: ["127.0.0.1:%d:80"]
    healthcheck: {test: [CMD, /server, check], interval: 100ms, start_period: 5s, start_interval: 50ms}
    deploy: {update_config: {order: start-first, monitor: 200ms, failure_action: rollback}}
`, version, port)
	}
	w.mustUp(file("one"), app.Policy{Wait: true})
	ctx, stop := context.WithCancel(context.Background())
	var asked, lost, second atomic.Int64
	var all sync.WaitGroup
	tick := time.NewTicker(2 * time.Millisecond) // five hundred a second
	all.Go(func() {
		for ctx.Err() == nil {
			select {
			case <-tick.C:
				all.Go(func() {
					text, err := get(port)
					asked.Add(1)
					if err != nil {
						lost.Add(1)
						t.Logf("lost: %v", err)
					}
					if text == "two" {
						second.Add(1)
					}
				})
			case <-ctx.Done():
			}
		}
	})
	lines, _, err := w.up(file("two"), app.Policy{})
	if err != nil {
		t.Errorf("%v\n%s", err, show(lines))
	}
	stop()
	tick.Stop()
	all.Wait()
	if lost.Load() > 0 || second.Load() == 0 || asked.Load() < 50 {
		t.Errorf("of %d requests %d were lost, %d reached the new container", asked.Load(), lost.Load(), second.Load())
	}
	w.want("web-1 running")
	if steps := w.plan(file("two"), app.Policy{}); len(steps) != 0 {
		t.Errorf("still to do: %q", steps)
	}
	if out, err := w.e.Docker(context.Background(), "port", w.name+"-web-1", "80/tcp"); err != nil || out != fmt.Sprintf("127.0.0.1:%d", port) {
		t.Errorf("ports shown: %q %v", out, err)
	}
}

func TestAReplacementThatFailsGoesBack(t *testing.T) {
	w := engine(t)
	for _, order := range []string{"start-first", "stop-first"} {
		file := func(command string) string {
			return fmt.Sprintf(`services:
  web:
    image: busybox:test
    command: [sh, -c, %q]
    stop_signal: KILL
    environment: {ORDER: %s}
    deploy: {replicas: 3, update_config: {order: %s, monitor: 100ms, failure_action: rollback}}
`, command, order, order)
		}
		w.mustUp(file("exec sleep 1000"), app.Policy{})
		_, r, err := w.up(file("exit 7"), app.Policy{})
		if err == nil || !strings.Contains(err.Error(), "exited (7)") || !slices.Equal(r.RolledBack, []string{"web"}) {
			t.Errorf("%s: %v %+v", order, err, r)
		}
		w.want("web-1 running", "web-2 running", "web-3 running")
		if steps := w.plan(file("exec sleep 1000"), app.Policy{}); len(steps) != 0 {
			t.Errorf("%s: it did not go back: %q", order, steps)
		}
	}
}

func TestManyOperationsOfOneApplicationAtOnce(t *testing.T) {
	w := engine(t)
	file := "services:\n  a: " + sleeper + "\n  b: " + sleeper + "\n"
	doc := w.document(file)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			ctx := context.Background()
			var err error
			switch i % 4 {
			case 0, 1:
				_, err = w.c.Apply(ctx, app.ApplyRequest{Document: doc}, nil)
			case 2:
				_, err = w.c.Scale(ctx, w.name, app.ScaleRequest{Document: &doc, Scale: map[string]int{"a": 1 + i%3}}, nil)
			case 3:
				_, err = w.c.Down(ctx, w.name, app.DownRequest{Document: &doc}, nil)
			}
			if err != nil {
				t.Errorf("operation %d: %v", i, err)
			}
		})
	}
	all.Wait()
	w.mustUp(file, app.Policy{})
	w.want("a-1 running", "b-1 running")
}

func TestAKilledDaemonFinishesWhatItBegan(t *testing.T) {
	w := own(t)
	file := func(n int) string {
		return fmt.Sprintf(`services:
  a: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {N: "%d"}, volumes: ["data:/d", "/x"]}
  b: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {N: "%d"}, depends_on: [a]}
  c: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, depends_on: [b], deploy: {replicas: 2}}
  d: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, network_mode: "service:a"}
  e: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {N: "%d"}, deploy: {update_config: {order: start-first, monitor: 10ms}}, ports: ["127.0.0.1::80"]}
  f: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL}
volumes: {data: {}}
`, n, n, n)
	}
	all := []string{"a-1 running", "b-1 running", "c-1 running", "c-2 running", "d-1 running", "e-1 running", "f-1 running"}
	kills := 6
	for i := range kills {
		// After so many lines the daemon is killed.
		after := 1 + rand.IntN(55)
		if i == 0 {
			after = 1 // what was heard of is done
		}
		_, err := w.c.Apply(context.Background(), app.ApplyRequest{Document: w.document(file(i))}, func(p app.Progress) error {
			if p.Seq >= after {
				w.e.Kill()
				return context.Canceled
			}
			return nil
		})
		if err == nil {
			w.e.Kill()
		}
		w.e.API.Close()
		w.c.Close()
		if err := w.e.Restart(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.settle()
		w.want(all...)
		if steps := w.plan(file(i), app.Policy{}); len(steps) != 0 {
			t.Fatalf("killed after line %d: still to do: %q", after, steps)
		}
	}
	if _, err := w.c.Down(context.Background(), w.name, app.DownRequest{Volumes: true}, func(p app.Progress) error {
		if p.Seq == 4 {
			w.e.Kill()
		}
		return nil
	}); err == nil {
		t.Fatal("the daemon was not killed")
	}
	if err := w.e.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.want()
	left, err := w.e.Docker(context.Background(), "volume", "ls", "-q")
	if err != nil || left != "" && !onlyAnonymous(left) {
		t.Errorf("volumes left: %q %v", left, err)
	}
}

func onlyAnonymous(list string) bool {
	for _, name := range strings.Fields(list) {
		if len(name) != 64 {
			return false
		}
	}
	return true
}

// settle waits for all operations of the application.
func (w *world) settle() {
	w.t.Helper()
	list, err := w.c.Operations(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range list {
		if o.App != w.name {
			continue
		}
		if r, err := w.c.Follow(context.Background(), o.ID, 0, nil); err != nil {
			w.t.Errorf("%s: %v (%+v)", o.Verb, err, r)
		}
	}
}
