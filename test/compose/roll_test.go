package compose

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth/core/app"
)

// server answers with its word, as "WORD checked" once its check has asked in vain. Told to end,
// it serves until nobody has asked for a while, as servers that are replaced
// must. The third that says "late" fails, and ends with its third check.
//
// As "ask URL" it is a client: it asks 100 times a second, half on connections
// that it keeps and half on one address alone, and tells what was lost and
// which words it heard.
const server = `package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	switch os.Args[1] {
	case "check":
		_ = syscall.Kill(1, syscall.SIGUSR1)
		if r, err := http.Get("http://127.0.0.1/"); err != nil || r.StatusCode != 200 {
			os.Exit(1)
		}
		return
	case "ask":
		ask(os.Args[2], end)
		return
	}
	checked := make(chan os.Signal, 8)
	signal.Notify(checked, syscall.SIGUSR1)
	status := 200
	if os.Args[1] == "late" && os.Mkdir("/shared/first", 0o755) != nil && os.Mkdir("/shared/second", 0o755) != nil {
		status = 500
	}
	asked := make(chan bool) // by another than the check
	s := &http.Server{Addr: ":80", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.RemoteAddr, "127.") {
			asked <- true
		}
		w.WriteHeader(status)
		fmt.Fprint(w, os.Args[1])
	})}
	if len(os.Args) == 2 {
		go s.ListenAndServe()
	}
	quiet := time.NewTimer(0)
	ending := false
	for n := 0; ; {
		select {
		case <-checked:
			if n++; n == 1 && len(os.Args) > 2 {
				go s.ListenAndServe()
			}
			if n == 3 && status != 200 {
				os.Exit(7)
			}
		case <-end:
			ending = true
			quiet.Reset(700 * time.Millisecond)
		case <-asked:
			quiet.Reset(700 * time.Millisecond)
		case <-quiet.C:
			if ending {
				s.Shutdown(context.Background())
				return
			}
		}
	}
}

func ask(url string, end chan os.Signal) {
	var mu sync.Mutex
	words, lost := map[string]int{}, 0
	var all sync.WaitGroup
	tick := time.NewTicker(20 * time.Millisecond)
	for {
		select {
		case <-tick.C:
		case <-end:
			all.Wait()
			fmt.Println("lost", lost, "heard", words)
			return
		}
		for _, keep := range []bool{true, false} {
			all.Add(1)
			go func() {
				defer all.Done()
				c := &http.Client{Timeout: 10 * time.Second}
				if !keep {
					c.Transport = &http.Transport{DisableKeepAlives: true, DialContext: first}
				}
				word, err := get(c, url)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					lost++
					fmt.Println(time.Now(), "kept", keep, err)
				}
				words[word]++
			}()
		}
	}
}

// first reaches the first address of a name, and no other.
func first(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, _ := strings.Cut(address, ":")
	list, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, network, list[0]+":"+port)
}

func get(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != 200 {
		err = fmt.Errorf("status %s", r.Status)
	}
	return string(b), err
}
`

// load asks published ports until it is stopped.
type load struct {
	stop              func()
	asked, lost, word atomic.Int64 // word: answers of the new containers
}

// ask begins a load of so many requests a second. Of several ports each request tries one after the other
// until one answers where any is true, else each must.
func (w *world) ask(rate int, ports []int, any bool, word string) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			all.Go(func() {
				l.asked.Add(1)
				var text string
				var err error
				for i := range ports {
					if text, err = get(ports[(n+i)%len(ports)]); err == nil || !any {
						break
					}
				}
				if err != nil {
					l.lost.Add(1)
					w.t.Logf("lost: %v", err)
				}
				if text == word {
					l.word.Add(1)
				}
			})
		}
	})
	l.stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	w.t.Cleanup(l.stop)
	return l
}

// away is the greatest number of containers that were gone at once, by the
// lines of an up that replaces stop-first.
func away(lines []app.Progress) (most int) {
	now := 0
	for _, l := range lines {
		switch {
		case l.Action == app.Stop && l.Status == app.Working && l.Text == "":
			now++
		case l.Action == app.Wait && l.Status == app.Done && strings.HasSuffix(l.Step, "to settle"):
			now--
		}
		most = max(most, now)
	}
	return most
}

func TestARollingUpLosesNoRequest(t *testing.T) {
	engine(t).loadServer()
	for _, x := range []struct {
		order                 string
		replicas, parallelism int
		rate                  int  // requests a second from outside
		back                  bool // the third replacement fails
	}{
		{"start-first", 1, 1, 500, false},
		{"start-first", 3, 2, 100, false},
		{"start-first", 3, 1, 100, true},
		{"stop-first", 4, 2, 100, false},
		{"stop-first", 3, 1, 100, true},
	} {
		name := fmt.Sprintf("%s-%d-%d", x.order, x.replicas, x.parallelism)
		if x.back {
			name += "-back"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := engine(t)
			ports := freePorts(t, x.replicas)
			file := func(version string) string {
				return fmt.Sprintf(`services:
  web:
    image: server:test
    command: [/server, %s, checked]
    ports: ["127.0.0.1:%d-%d:80"]
    volumes: [shared:/shared]
    healthcheck: {test: [CMD, /server, check], interval: 2s, start_period: 20s, start_interval: 100ms}
    deploy: {replicas: %d, update_config: {order: %s, parallelism: %d, monitor: 200ms, failure_action: rollback}}
  client:
    image: server:test
    command: [/server, ask, "http://web/"]
    depends_on: {web: {condition: service_healthy}}
volumes: {shared: {}}
`, version, ports[0], ports[len(ports)-1], x.replicas, x.order, x.parallelism)
			}
			w.mustUp(file("one"), app.Policy{Wait: true})
			next := "two"
			if x.back {
				next = "late"
			}
			l := w.ask(x.rate, ports, x.order == "stop-first", next)
			lines, _, err := w.up(file(next), app.Policy{})
			l.stop()
			if x.back != (err != nil) {
				t.Errorf("%v\n%s", err, show(lines))
			}
			if l.lost.Load() > 0 || l.word.Load() == 0 || l.asked.Load() < 50 {
				t.Errorf("of %d requests %d were lost, %d reached a new container", l.asked.Load(), l.lost.Load(), l.word.Load())
			}
			if n := away(lines); x.order == "stop-first" && !x.back && n != x.parallelism {
				t.Errorf("%d containers were away at once\n%s", n, show(lines))
			}
			if _, err := w.e.Docker(context.Background(), "stop", w.name+"-client-1"); err != nil {
				t.Error(err)
			}
			heard, err := w.e.Docker(context.Background(), "logs", w.name+"-client-1")
			if err != nil || !strings.Contains(heard, "lost 0 heard") || !strings.Contains(heard, next+":") {
				t.Errorf("who asks by name: %v\n%s", err, heard)
			}
			now := file(next)
			if x.back {
				now = file("one")
			}
			w.mustUp(now, app.Policy{})
			if steps := w.plan(now, app.Policy{}); len(steps) != 0 {
				t.Errorf("still to do: %q", steps)
			}
			var shown, want []string
			for i, port := range ports {
				out, err := w.e.Docker(context.Background(), "port", fmt.Sprintf("%s-web-%d", w.name, i+1), "80/tcp")
				if err != nil {
					t.Error(err)
				}
				shown, want = append(shown, out), append(want, fmt.Sprintf("127.0.0.1:%d", port))
			}
			if slices.Sort(shown); !slices.Equal(shown, want) {
				t.Errorf("ports shown: %q", shown)
			}
		})
	}
}

// freePorts gives n ports in a row, below those that clients of the host's own get.
func freePorts(t *testing.T, n int) (list []int) {
	t.Helper()
	for {
		first := 10000 + rand.IntN(20000)
		list = list[:0]
		for i := range n {
			l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", first+i))
			if err != nil {
				break
			}
			defer l.Close()
			list = append(list, first+i)
		}
		if len(list) == n {
			return list
		}
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
