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
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/lib/host"
	"github.com/berth-project/berth/test/kit"
)

func main() { kit.Command("bench", run) }

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
	only := flag.String("only", "", "measure only names that this regular expression matches")
	alone := flag.Bool("alone", false, "leave the peer out")
	flag.Parse()
	path, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	if err := os.Setenv("BERTH_TEST_BIN", path); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	ctx := context.Background()
	var subjects []subject
	for _, peer := range []bool{false, true} {
		name := map[bool]string{false: "berth", true: "docker.io"}[peer]
		if peer && *alone {
			continue
		}
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
		if !wanted.MatchString(m.name) {
			continue
		}
		r, err := m.take(ctx, subjects, *n)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		results = append(results, r)
		fmt.Println(r.line())
	}
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(page(results)), 0o644)
}

// take samples the engines in turn, so that what else the machine does meets
// both alike; the first sample of each warms it up.
func (m measurement) take(ctx context.Context, subjects []subject, n int) (result, error) {
	r := result{name: m.name, unit: m.unit, more: m.more, goal: m.goal, value: map[string]float64{}}
	if m.once > 0 {
		n = m.once
	}
	sample := map[string]func() (float64, error){}
	for _, s := range subjects {
		f, end, err := m.begin(ctx, s.engine)
		if err != nil {
			return r, fmt.Errorf("%s: %w", s.name, err)
		}
		if end != nil {
			defer end()
		}
		sample[s.name] = f
	}
	values := map[string][]float64{}
	for i := range n + 1 {
		for _, s := range subjects {
			v, err := sample[s.name]()
			if err != nil {
				return r, fmt.Errorf("%s: %w", s.name, err)
			}
			if i > 0 {
				values[s.name] = append(values[s.name], v)
			}
		}
	}
	for name, list := range values {
		r.value[name] = median(list)
	}
	return r, nil
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
	fmt.Fprintf(&b, "# Measured\n\nWritten by `make bench` on %s, kernel %s, %d processors, %s. Both engines run side by side and are sampled in turn; each value is a median; API over a unix socket.\n\n"+
		"Builds are measured by `make bench-build` ([page](bench-build.md)), applications by `make bench-compose` ([page](bench-compose.md)).\n\n", f.Distribution, f.Kernel, runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"))
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

// measurement of an engine. begin makes it ready and gives what takes one
// sample, and what tidies up where that is needed.
type measurement struct {
	name, unit, goal string
	more             bool // more is better
	once             int  // samples; 0 takes as many as asked for
	begin            func(ctx context.Context, e *kit.Engine) (sample func() (float64, error), end func(), err error)
}

var measurements = []measurement{
	{"create, start, wait, remove `true`, network none", "ms", "1/8", false, 0, cycles("none")},
	{"create, start, wait, remove `true`, bridge", "ms", "1/8", false, 0, cycles("bridge")},
	{"exec `true`", "ms", "1/5", false, 0, execs},
	{"processor time of a cycle, network none", "ms", "", false, 3, processor(cycles("none"))},
	{"processor time of a cycle, bridge", "ms", "", false, 3, processor(cycles("bridge"))},
	{"processor time of an exec", "ms", "", false, 3, processor(execs)},
	{"cycles a second, 32 clients, network none", "1/s", "", true, 3, parallel},
	{"10 idle containers, started one after another", "s", "", false, idleRounds, idle},
	{"engine's memory for one idle container", "MB PSS", "1/10", false, 1, idleMemory},
	{"list of 100 containers", "ms", "", false, 0, list},
	{"idle engine's memory", "MB PSS", "", false, 1, daemonMemory},
	{"container with 200 published ports", "ms", "1/50", false, 3, ports},
	{"log lines written a second", "1/s", "", true, 3, logs},
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

// timed gives what do takes, in milliseconds.
func timed(do func() error) (float64, error) {
	began := time.Now()
	err := do()
	return time.Since(began).Seconds() * 1000, err
}

func cycles(network string) func(context.Context, *kit.Engine) (func() (float64, error), func(), error) {
	return func(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
		return func() (float64, error) { return timed(func() error { return cycle(ctx, e, network) }) }, nil, nil
	}
}

func sleeper(ctx context.Context, e *kit.Engine, host map[string]any) (string, error) {
	id, err := create(ctx, e, map[string]any{"Image": "busybox:test", "Cmd": []string{"sleep", "100000"}, "HostConfig": host})
	if err != nil {
		return "", err
	}
	return id, e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil)
}

func execs(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	id, err := sleeper(ctx, e, map[string]any{"NetworkMode": "none"})
	if err != nil {
		return nil, nil, err
	}
	sample := func() error {
		var x created
		if err := e.API.Call(ctx, "POST", "/containers/"+id+"/exec", map[string]any{"Cmd": []string{"true"}, "AttachStdout": true}, &x); err != nil {
			return err
		}
		r, err := e.API.Do(ctx, "POST", "/exec/"+x.ID+"/start", "application/json", strings.NewReader("{}"))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(r.Body) // ends with the process
		return errors.Join(err, r.Body.Close())
	}
	return func() (float64, error) { return timed(sample) }, func() { _ = remove(ctx, e, id) }, nil
}

func parallel(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	const clients, total = 32, 64
	sample := func() (float64, error) {
		jobs := make(chan struct{}, total)
		for range total {
			jobs <- struct{}{}
		}
		close(jobs)
		var wait sync.WaitGroup
		failed := make(chan error, clients)
		began := time.Now()
		for range clients {
			wait.Go(func() {
				for range jobs {
					if err := cycle(ctx, e, "none"); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		wait.Wait()
		select {
		case err := <-failed:
			return 0, err
		default:
		}
		return total / time.Since(began).Seconds(), nil
	}
	return sample, nil, nil
}

// Idle containers are started in rounds and stay for the measurements after
// it, until idleMemory, list and daemonMemory have had them.
const (
	idleRounds = 9 // and one that warms up
	idleEach   = 10
)

var (
	idleIDs    = map[*kit.Engine][]string{}
	idleBefore = map[*kit.Engine]float64{}
)

func idle(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	before, err := memory(e)
	idleBefore[e] = before
	sample := func() (float64, error) {
		ms, err := timed(func() error {
			for range idleEach {
				id, err := sleeper(ctx, e, map[string]any{})
				if err != nil {
					return err
				}
				idleIDs[e] = append(idleIDs[e], id)
			}
			return nil
		})
		return ms / 1000, err
	}
	return sample, nil, err
}

func idleMemory(_ context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	return func() (float64, error) {
		after, err := memory(e)
		return max(after-idleBefore[e], 0) / float64(max(len(idleIDs[e]), 1)) / 1e6, err
	}, nil, nil
}

func list(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	sample := func() (float64, error) {
		return timed(func() error { return e.API.Call(ctx, "GET", "/containers/json", nil, nil) })
	}
	return sample, nil, nil
}

// daemonMemory is that of an engine whose containers are gone.
func daemonMemory(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	for _, id := range idleIDs[e] {
		if err := remove(ctx, e, id); err != nil {
			return nil, nil, err
		}
	}
	delete(idleIDs, e)
	return func() (float64, error) {
		n, err := memory(e)
		return n / 1e6, err
	}, nil, nil
}

func ports(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	// The engines share a host: each has ports of its own.
	first := 20000
	if e.IsPeer {
		first = 30000
	}
	bindings, exposed := map[string]any{}, map[string]any{}
	for i := range 200 {
		p := fmt.Sprintf("%d/tcp", 10000+i)
		exposed[p] = struct{}{}
		bindings[p] = []map[string]string{{"HostIp": "127.0.0.1", "HostPort": strconv.Itoa(first + i)}}
	}
	sample := func() (float64, error) {
		id, err := create(ctx, e, map[string]any{"Image": "busybox:test", "Cmd": []string{"sleep", "1000"}, "ExposedPorts": exposed, "HostConfig": map[string]any{"PortBindings": bindings}})
		if err != nil {
			return 0, err
		}
		ms, err := timed(func() error { return e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil) })
		return ms, errors.Join(err, remove(ctx, e, id))
	}
	return sample, nil, nil
}

func logs(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
	const lines = 500_000
	sample := func() (float64, error) {
		id, err := create(ctx, e, map[string]any{"Image": "busybox:test", "Cmd": []string{"seq", strconv.Itoa(lines)},
			"HostConfig": map[string]any{"NetworkMode": "none", "LogConfig": map[string]any{"Type": "json-file"}}})
		if err != nil {
			return 0, err
		}
		ms, err := timed(func() error {
			if err := e.API.Call(ctx, "POST", "/containers/"+id+"/start", nil, nil); err != nil {
				return err
			}
			return e.API.Call(ctx, "POST", "/containers/"+id+"/wait", nil, nil)
		})
		return lines / ms * 1000, errors.Join(err, remove(ctx, e, id))
	}
	return sample, nil, nil
}
