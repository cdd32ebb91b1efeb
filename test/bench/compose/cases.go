package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// one is a row of the page.
type one struct {
	name  string
	ratio float64       // wanted of berth to the reference; 0: none is
	limit time.Duration // wanted of berth; 0: none
}

var rows = []one{
	{"config of 1 service", 0.05, 0},
	{"config of 1000 services", 0, 300 * time.Millisecond},
	{"up of 10", 0.5, 0},
	{"down of 10", 0, 0},
	{"up of 50", 0.35, 0},
	{"down of 50", 0, 0},
	{"up of 200", 0.25, 0},
	{"up of 200 again", 0.03, 100 * time.Millisecond},
	{"change of 1 of 200", 0.05, 0},
	{"down of 200", 0.25, 0},
	{"chain of 20 healthy", 0.15, 0},
	{"scale 1 to 100", 0.3, 0},
	{"ps of 500", 0, 60 * time.Millisecond},
}

type bench struct {
	dir           string
	subjects      []*subject
	n, most       int
	limit, budget time.Duration
	only          *regexp.Regexp // of cases
	begun         time.Time
	leftOut       []string // cases for which no time was left
}

// measure takes the cases, the subjects in turn within each, so that what else
// the machine does meets all alike. What costs most and says least comes last:
// the budget may end before it.
func (b *bench) measure(ctx context.Context) {
	all := []string{berth, v5Here, v5There, reference}
	short := []string{berth, v5Here, reference}
	for _, c := range []struct {
		name  string
		who   []string
		times int // 0: once
		size  int // services that it starts
		take  func(context.Context, *subject)
	}{
		{"config of 1 service", all, b.n, 0, b.config(1)},
		{"config of 1000 services", all, 0, 0, b.config(1000)},
		{"flat 10", all, min(b.n, 2), 10, b.flat(10)},
		{"chain of 20", all, 0, 20, b.chain},
		{"flat 50", all, 0, 50, b.flat(50)},
		{"flat 200", short, 0, 200, b.flat(200)},
		{"scale to 100", short, 0, 100, b.scale},
		{"flat 500", []string{berth}, 0, 500, b.flat(500)},
		{"flat 200", []string{v5There}, 0, 200, b.flat(200)},
		{"scale to 100", []string{v5There}, 0, 100, b.scale},
	} {
		if c.size > b.most || !b.only.MatchString(c.name) {
			continue
		}
		for range max(1, c.times) {
			for _, s := range b.subjects {
				if !slices.Contains(c.who, s.name) || ctx.Err() != nil {
					continue
				}
				if time.Since(b.begun) > b.budget {
					b.leftOut = append(b.leftOut, s.name+": "+c.name)
					continue
				}
				c.take(ctx, s)
			}
		}
	}
}

func (b *bench) config(n int) func(context.Context, *subject) {
	name := fmt.Sprintf("config of %d services", n)
	if n == 1 {
		name = "config of 1 service"
	}
	return func(ctx context.Context, s *subject) { b.time(ctx, s, name, b.file(n, "a", false), "config", "-q") }
}

// flat brings n services up, that nothing depends on, and does to them what is done often.
func (b *bench) flat(n int) func(context.Context, *subject) {
	return func(ctx context.Context, s *subject) {
		defer b.tidy(ctx, s)
		file, other := b.file(n, "a", false), b.file(n, "b", false)
		if !b.time(ctx, s, fmt.Sprintf("up of %d", n), file, "up", "-d") {
			return
		}
		if n >= 200 {
			for range b.n {
				b.time(ctx, s, fmt.Sprintf("up of %d again", n), file, "up", "-d")
				for _, other := range b.subjects { // the clients of one engine see the same
					if other.engine == s.engine && (other == s || n > 200) {
						b.time(ctx, other, fmt.Sprintf("ps of %d", n), file, "ps")
					}
				}
			}
			for i := range 2 {
				b.time(ctx, s, fmt.Sprintf("change of 1 of %d", n), []string{other, file}[i], "up", "-d")
			}
		}
		b.time(ctx, s, fmt.Sprintf("down of %d", n), file, "down", "-t", "0")
	}
}

func (b *bench) chain(ctx context.Context, s *subject) {
	defer b.tidy(ctx, s)
	file := b.file(20, "a", true)
	b.time(ctx, s, "chain of 20 healthy", file, "up", "-d")
	b.time(ctx, s, "down of the chain", file, "down", "-t", "0")
}

func (b *bench) scale(ctx context.Context, s *subject) {
	defer b.tidy(ctx, s)
	file := b.file(1, "a", false)
	if b.time(ctx, s, "up of 1", file, "up", "-d") {
		b.time(ctx, s, "scale 1 to 100", file, "up", "-d", "--scale", "s0=100")
	}
	b.time(ctx, s, "down of 100", file, "down", "-t", "0")
}

// file writes an application of n services; word is in the environment of the
// first. In a chain each waits for the one before to be healthy.
func (b *bench) file(n int, word string, chain bool) string {
	var t strings.Builder
	t.WriteString("version: '2.4'\nservices:\n")
	for i := range n {
		fmt.Fprintf(&t, "  s%d:\n    image: busybox:test\n    command: sleep 100000\n    stop_signal: KILL\n", i)
		if i == 0 {
			fmt.Fprintf(&t, "    environment: {WORD: '%s'}\n", word)
		}
		if chain {
			t.WriteString("    healthcheck: {test: ['CMD', 'true'], interval: 100ms}\n")
			if i > 0 {
				fmt.Fprintf(&t, "    depends_on: {s%d: {condition: service_healthy}}\n", i-1)
			}
		}
	}
	path := filepath.Join(b.dir, fmt.Sprintf("%d%s%t.yml", n, word, chain))
	if err := os.WriteFile(path, []byte(t.String()), 0o644); err != nil {
		panic(err) // our own temporary folder
	}
	return path
}

// time runs one command and notes how long it took, or why it did not end well.
func (b *bench) time(ctx context.Context, s *subject, name, file string, args ...string) bool {
	within, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	argv := append(slices.Clone(s.program), append([]string{"-p", "bench", "-f", file}, args...)...)
	cmd := exec.CommandContext(within, argv[0], argv[1:]...)
	// 1.29.2 gives up on a daemon that is busy with its own requests otherwise.
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.engine.Socket, "COMPOSE_HTTP_TIMEOUT=600", "PARALLEL_LIMIT=64")
	cmd.WaitDelay = time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	begun := time.Now()
	err := cmd.Run()
	took := time.Since(begun)
	at := time.Since(b.begun).Round(time.Second)
	switch {
	case ctx.Err() != nil:
		return false
	case errors.Is(within.Err(), context.DeadlineExceeded):
		s.over[name] = true
		s.failed[name] = fmt.Sprintf("it took longer than %v", b.limit)
	case err != nil:
		lines := strings.Split(strings.TrimSpace(output.String()), "\n")
		s.failed[name] = fmt.Sprintf("%v: %s", err, lines[len(lines)-1])
	default:
		s.times[name] = append(s.times[name], took)
		fmt.Printf("%5v  %-22s %-24s %9.0f ms\n", at, s.name, name, took.Seconds()*1000)
		return true
	}
	fmt.Printf("%5v  %-22s %-24s %s\n", at, s.name, name, s.failed[name])
	return false
}

// tidy removes what a command that failed has left: the next case finds an empty engine.
func (b *bench) tidy(ctx context.Context, s *subject) {
	for range tidyLimit {
		left, err := s.engine.Docker(ctx, "ps", "-aq")
		if err != nil || left == "" && len(s.failed) == 0 {
			return
		}
		s.engine.RemoveAll(`{"label":["com.docker.compose.project=bench"]}`)
		if left == "" {
			return
		}
	}
}

// tidyLimit is how often the removal of what is left is begun; one pass is bounded itself.
const tidyLimit = 10

// median of what was taken; 0 where nothing was.
func (s *subject) median(name string) time.Duration {
	list := slices.Clone(s.times[name])
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)/2]
}
