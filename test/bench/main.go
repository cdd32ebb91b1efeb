// Command bench measures Berth beside docker.io and runc in the same run and
// prints ratios. It speaks the API over unix sockets, so that no client's
// start is measured.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/lib/host"
	"github.com/berth-project/berth/test/kit"
)

func main() {
	os.Exit(kit.Enter(func() int {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}))
}

// result is one measurement of one engine; smaller is better unless more says otherwise.
type result struct {
	name, unit string
	value      map[string]float64
	more       bool
	goal       string
}

type subject struct {
	name   string
	engine *kit.Engine
}

func run() error {
	out := flag.String("o", "", "write a page of Markdown to this file")
	bin := flag.String("bin", "bin", "folder of Berth's programs")
	n := flag.Int("n", 20, "repetitions of each measurement")
	flag.Parse()
	path, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	if err := os.Setenv("BERTH_TEST_BIN", path); err != nil {
		return err
	}
	ctx := context.Background()
	var subjects []subject
	for _, peer := range []bool{false, true} {
		name := map[bool]string{false: "berth", true: "docker.io"}[peer]
		e, err := kit.Start(ctx, "bench-"+name, peer)
		if errors.Is(err, kit.ErrMissing) {
			fmt.Println("skipped:", err)
			continue
		}
		if err != nil {
			return err
		}
		defer e.Stop()
		if err := e.LoadImages(ctx); err != nil {
			return err
		}
		subjects = append(subjects, subject{name, e})
	}
	var results []result
	for _, m := range measurements {
		r := result{name: m.name, unit: m.unit, more: m.more, goal: m.goal, value: map[string]float64{}}
		for _, s := range subjects {
			v, err := m.run(ctx, s.engine, *n)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", m.name, s.name, err)
			}
			r.value[s.name] = v
		}
		results = append(results, r)
		fmt.Println(r.line())
	}
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(page(results)), 0o644)
}

func (r result) ratio() string {
	b, d := r.value["berth"], r.value["docker.io"]
	if b == 0 || d == 0 {
		return "–"
	}
	if r.more {
		return fmt.Sprintf("%.1f×", b/d)
	}
	return fmt.Sprintf("1/%.1f", d/b)
}

func (r result) line() string {
	return fmt.Sprintf("%-46s %10.2f %-9s docker.io %10.2f   ratio %-7s goal %s", r.name, r.value["berth"], r.unit, r.value["docker.io"], r.ratio(), r.goal)
}

func page(results []result) string {
	f := host.Look()
	var b strings.Builder
	fmt.Fprintf(&b, "# Measured\n\nWritten by `make bench` on %s, kernel %s, %d processors, %s. Both engines in the same run, one after the other; API over a unix socket.\n\n", f.Distribution, f.Kernel, runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"))
	b.WriteString("| what | Berth | docker.io | ratio | first goal |\n|---|---:|---:|---:|---|\n")
	for _, r := range results {
		peer := "–"
		if v := r.value["docker.io"]; v != 0 {
			peer = fmt.Sprintf("%.2f %s", v, r.unit)
		}
		fmt.Fprintf(&b, "| %s | %.2f %s | %s | %s | %s |\n", r.name, r.value["berth"], r.unit, peer, r.ratio(), r.goal)
	}
	return b.String()
}

type measurement struct {
	name, unit, goal string
	more             bool
	run              func(ctx context.Context, e *kit.Engine, n int) (float64, error)
}

var measurements = []measurement{
	{"create, start, wait, remove `true`, network none", "ms", "1/8", false, func(ctx context.Context, e *kit.Engine, n int) (float64, error) { return cycles(ctx, e, n, "none") }},
	{"create, start, wait, remove `true`, bridge", "ms", "1/8", false, func(ctx context.Context, e *kit.Engine, n int) (float64, error) { return cycles(ctx, e, n, "bridge") }},
	{"exec `true`", "ms", "1/5", false, execs},
	{"cycles a second, 32 clients, network none", "1/s", "", true, parallel},
	{"100 idle containers, started one after another", "s", "", false, idle},
	{"engine's memory for one idle container", "MB PSS", "1/10", false, idleMemory},
	{"idle engine's memory", "MB PSS", "", false, daemonMemory},
	{"list of 100 containers", "ms", "", false, list},
	{"container with 200 published ports", "ms", "1/50", false, ports},
	{"log lines written a second", "1/s", "", true, logs},
}

type created struct{ ID string }

func create(ctx context.Context, e *kit.Engine, body map[string]any) (string, error) {
	var c created
	err := e.API.Call(ctx, "POST", "/containers/create", body, &c)
	return c.ID, err
}

func remove(ctx context.Context, e *kit.Engine, id string) error {
	return e.API.Call(ctx, "DELETE", "/containers/"+id+"?force=1&v=1", nil, nil)
}

// cycle registers the wait before the start, as clients do.
func cycle(ctx context.Context, e *kit.Engine, network string) error {
	id, err := create(ctx, e, map[string]any{"Image": "true:test", "HostConfig": map[string]any{"NetworkMode": network}})
	if err != nil {
		return err
	}
	waited := make(chan error, 1)
	go func() { waited <- e.API.Call(ctx, "POST", "/containers/"+id+"/wait?condition=next-exit", nil, nil) }()
	if err := e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil); err != nil {
		return err
	}
	// A wait that came after the end of so short a run is answered by the state.
	done := make(chan error, 1)
	go func() { done <- e.API.Call(ctx, "POST", "/containers/"+id+"/wait", nil, nil) }()
	select {
	case err = <-waited:
	case err = <-done:
	}
	if err != nil {
		return err
	}
	return remove(ctx, e, id)
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

func cycles(ctx context.Context, e *kit.Engine, n int, network string) (float64, error) {
	var times []float64
	for range n + 1 {
		began := time.Now()
		if err := cycle(ctx, e, network); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began).Seconds()*1000)
	}
	return median(times[1:]), nil // the first one warms up
}

func sleeper(ctx context.Context, e *kit.Engine, host map[string]any) (string, error) {
	id, err := create(ctx, e, map[string]any{"Image": "busybox:test", "Cmd": []string{"sleep", "100000"}, "HostConfig": host})
	if err != nil {
		return "", err
	}
	return id, e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil)
}

func execs(ctx context.Context, e *kit.Engine, n int) (float64, error) {
	id, err := sleeper(ctx, e, map[string]any{"NetworkMode": "none"})
	if err != nil {
		return 0, err
	}
	var times []float64
	for range n + 1 {
		began := time.Now()
		var x created
		if err := e.API.Call(ctx, "POST", "/containers/"+id+"/exec", map[string]any{"Cmd": []string{"true"}, "AttachStdout": true}, &x); err != nil {
			return 0, err
		}
		r, err := e.API.Do(ctx, "POST", "/exec/"+x.ID+"/start", "application/json", strings.NewReader("{}"))
		if err != nil {
			return 0, err
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body) // ends with the process
		_ = r.Body.Close()
		times = append(times, time.Since(began).Seconds()*1000)
	}
	return median(times[1:]), remove(ctx, e, id)
}

func parallel(ctx context.Context, e *kit.Engine, n int) (float64, error) {
	const clients = 32
	total := max(n, 2*clients)
	jobs := make(chan struct{}, total)
	for range total {
		jobs <- struct{}{}
	}
	close(jobs)
	var wait sync.WaitGroup
	failed := make(chan error, clients)
	began := time.Now()
	for range clients {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for range jobs {
				if err := cycle(ctx, e, "none"); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	wait.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	return float64(total) / time.Since(began).Seconds(), nil
}

const idlers = 100

var (
	idleIDs   []string
	idleBytes float64
)

// idle starts containers and leaves them for the measurements after it.
func idle(ctx context.Context, e *kit.Engine, _ int) (float64, error) {
	before, err := memory(e)
	if err != nil {
		return 0, err
	}
	idleIDs = nil
	began := time.Now()
	for range idlers {
		id, err := sleeper(ctx, e, map[string]any{})
		if err != nil {
			return 0, err
		}
		idleIDs = append(idleIDs, id)
	}
	took := time.Since(began).Seconds()
	after, err := memory(e)
	if err != nil {
		return 0, err
	}
	idleBytes = max(after-before, 0) / idlers
	lastIdle[e] = idleBytes
	var times []float64
	for range 20 {
		began := time.Now()
		if err := e.API.Call(ctx, "GET", "/containers/json", nil, nil); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began).Seconds()*1000)
	}
	lastList[e] = median(times)
	for _, id := range idleIDs {
		if err := remove(ctx, e, id); err != nil {
			return 0, err
		}
	}
	return took, nil
}

var lastIdle, lastList = map[*kit.Engine]float64{}, map[*kit.Engine]float64{}

func idleMemory(_ context.Context, e *kit.Engine, _ int) (float64, error) {
	return lastIdle[e] / 1e6, nil
}
func list(_ context.Context, e *kit.Engine, _ int) (float64, error) { return lastList[e], nil }

func daemonMemory(_ context.Context, e *kit.Engine, _ int) (float64, error) {
	n, err := memory(e)
	return n / 1e6, err
}

// memory adds the proportional memory of the engine's own processes: all that
// are of this namespace and are no container's.
func memory(e *kit.Engine) (float64, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	mine := []string{"berthd", "berth-keeper"}
	if e.IsPeer {
		mine = []string{"dockerd", "containerd", "containerd-shim", "docker-proxy"}
	}
	total := 0.0
	for _, p := range entries {
		name, err := os.ReadFile("/proc/" + p.Name() + "/comm")
		if err != nil || !slices.ContainsFunc(mine, func(m string) bool { return strings.HasPrefix(strings.TrimSpace(string(name)), m[:min(len(m), 15)]) }) {
			continue
		}
		b, err := os.ReadFile("/proc/" + p.Name() + "/smaps_rollup")
		if err != nil {
			continue
		}
		for _, l := range strings.Split(string(b), "\n") {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "Pss:" {
				kb, _ := strconv.ParseFloat(f[1], 64)
				total += kb * 1024
			}
		}
	}
	return total, nil
}

func ports(ctx context.Context, e *kit.Engine, _ int) (float64, error) {
	bindings, exposed := map[string]any{}, map[string]any{}
	for i := range 200 {
		p := fmt.Sprintf("%d/tcp", 10000+i)
		exposed[p] = struct{}{}
		bindings[p] = []map[string]string{{"HostIp": "127.0.0.1", "HostPort": strconv.Itoa(20000 + i)}}
	}
	var times []float64
	for range 3 {
		id, err := create(ctx, e, map[string]any{"Image": "busybox:test", "Cmd": []string{"sleep", "1000"}, "ExposedPorts": exposed, "HostConfig": map[string]any{"PortBindings": bindings}})
		if err != nil {
			return 0, err
		}
		began := time.Now()
		if err := e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began).Seconds()*1000)
		if err := remove(ctx, e, id); err != nil {
			return 0, err
		}
	}
	return median(times), nil
}

func logs(ctx context.Context, e *kit.Engine, _ int) (float64, error) {
	const lines = 500_000
	id, err := create(ctx, e, map[string]any{"Image": "busybox:test", "Cmd": []string{"seq", strconv.Itoa(lines)},
		"HostConfig": map[string]any{"NetworkMode": "none", "LogConfig": map[string]any{"Type": "json-file"}}})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil); err != nil {
		return 0, err
	}
	if err := e.API.Call(ctx, "POST", "/containers/"+id+"/wait", nil, nil); err != nil {
		return 0, err
	}
	return lines / time.Since(began).Seconds(), remove(ctx, e, id)
}
