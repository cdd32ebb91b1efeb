// Command compose measures applications: `berth compose` on Berth beside
// docker compose v5.6.0 on both engines and docker-compose 1.29.2 on
// docker.io, with the same files and images that are here, in the same run.
// What is timed is what a person waits for: the whole command.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/test/kit"
)

func main() {
	os.Exit(kit.Enter(func() int {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, "bench-compose:", err)
			return 1
		}
		return 0
	}))
}

// commandLimit is how long one command may take.
const commandLimit = 10 * time.Minute

// subject is one client with one engine.
type subject struct {
	name    string
	program []string
	engine  *kit.Engine
	failed  map[string]string // case → why it could not be measured
	times   map[string][]time.Duration
}

// one is what is measured, in the order of the page.
type one struct {
	name  string
	ratio float64       // to docker-compose 1.29.2 on docker.io; 0: none is wanted
	limit time.Duration // 0: none
}

func run() error {
	out := flag.String("o", "", "write a page of Markdown to this file")
	bin := flag.String("bin", "bin", "folder of Berth's programs, with tools/docker-compose of `make test-tools`")
	n := flag.Int("n", 3, "repetitions of each case")
	most := flag.Int("most", 500, "services of the largest application that is started")
	flag.Parse()
	path, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	if err := os.Setenv("BERTH_TEST_BIN", path); err != nil {
		return err
	}
	ctx := context.Background()
	subjects, stop, err := subjects(ctx, path)
	defer stop()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-compose-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, subjects: subjects, most: *most}
	for range *n {
		for _, s := range subjects { // in turn: what else the machine does meets all alike
			b.round(ctx, s)
		}
	}
	page := b.page()
	fmt.Print(page)
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(page), 0o644)
}

// subjects starts the engines; what is missing is said and left out.
func subjects(ctx context.Context, bin string) (list []*subject, stop func(), err error) {
	var engines []*kit.Engine
	stop = func() {
		for _, e := range engines {
			_ = e.Stop()
		}
	}
	start := func(name string, peer bool) (*kit.Engine, error) {
		e, err := kit.Start(ctx, "bench-"+name, peer)
		if errors.Is(err, kit.ErrMissing) {
			fmt.Println("skipped:", err)
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		engines = append(engines, e)
		return e, e.LoadImages(ctx)
	}
	ours, err := start("berth", false)
	if err != nil {
		return nil, stop, err
	}
	theirs, err := start("docker.io", true)
	if err != nil {
		return nil, stop, err
	}
	add := func(name string, e *kit.Engine, program ...string) {
		if e == nil {
			return
		}
		if _, err := exec.LookPath(program[0]); err != nil {
			fmt.Printf("skipped: %s: %s is not there (make test-tools, package docker-compose)\n", name, program[0])
			return
		}
		list = append(list, &subject{name: name, program: program, engine: e, failed: map[string]string{}, times: map[string][]time.Duration{}})
	}
	v5 := filepath.Join(bin, "tools", "docker-compose")
	add("berth", ours, filepath.Join(bin, "berth"), "compose")
	add("v5.6.0 on Berth", ours, v5)
	add("v5.6.0 on docker.io", theirs, v5)
	add(reference, theirs, "/usr/bin/docker-compose")
	if len(list) == 0 {
		return nil, stop, errors.New("nothing to measure")
	}
	return list, stop, nil
}

// reference is whose times the goals are ratios of.
const reference = "1.29.2 on docker.io"

var cases = []one{
	{"config of 1 service", 0.05, 0},
	{"config of 1000 services", 0, 300 * time.Millisecond},
	{"up of 10", 0.5, 0},
	{"up of 50", 0.35, 0},
	{"up of 200", 0.25, 0},
	{"up of 200 again", 0.03, 100 * time.Millisecond},
	{"change of 1 of 200", 0.05, 0},
	{"down of 200", 0.25, 0},
	{"chain of 20 healthy", 0.15, 0},
	{"scale 1 to 100", 0.3, 0},
	{"ps of 500", 0, 60 * time.Millisecond},
}

type bench struct {
	dir      string
	subjects []*subject
	most     int
}

// file writes an application of n services; word is in the environment of the first.
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

// round takes each case once for one subject. An application that cannot be
// brought up is taken down, and its cases are told as failed.
func (b *bench) round(ctx context.Context, s *subject) {
	s.time(ctx, "config of 1 service", b.file(1, "a", false), "config", "-q")
	s.time(ctx, "config of 1000 services", b.file(1000, "a", false), "config", "-q")
	for _, n := range []int{10, 50, 200, 500} {
		if n > b.most {
			continue
		}
		file := b.file(n, "a", false)
		if s.time(ctx, fmt.Sprintf("up of %d", n), file, "up", "-d") {
			s.time(ctx, fmt.Sprintf("up of %d again", n), file, "up", "-d")
			s.time(ctx, fmt.Sprintf("ps of %d", n), file, "ps")
			s.time(ctx, fmt.Sprintf("change of 1 of %d", n), b.file(n, "b", false), "up", "-d")
		}
		s.time(ctx, fmt.Sprintf("down of %d", n), file, "down", "-t", "0")
	}
	chain := b.file(20, "a", true)
	s.time(ctx, "chain of 20 healthy", chain, "up", "-d")
	s.time(ctx, "down of the chain", chain, "down", "-t", "0")
	if b.most >= 100 {
		one := b.file(1, "a", false)
		if s.time(ctx, "up of 1", one, "up", "-d") {
			s.time(ctx, "scale 1 to 100", one, "up", "-d", "--scale", "s0=100")
		}
		s.time(ctx, "down of 100", one, "down", "-t", "0")
	}
}

// time runs one command and notes how long it took.
func (s *subject) time(ctx context.Context, name, file string, args ...string) bool {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	argv := append(slices.Clone(s.program), append([]string{"-p", "bench", "-f", file}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// 1.29.2 gives up on a daemon that is busy with its own requests otherwise.
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.engine.Socket, "COMPOSE_HTTP_TIMEOUT=600", "PARALLEL_LIMIT=64")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	begun := time.Now()
	err := cmd.Run()
	took := time.Since(begun)
	if err != nil {
		lines := strings.Split(strings.TrimSpace(output.String()), "\n")
		s.failed[name] = fmt.Sprintf("%v: %s", err, lines[len(lines)-1])
		return false
	}
	s.times[name] = append(s.times[name], took)
	fmt.Printf("%-22s %-24s %8.0f ms\n", s.name, name, took.Seconds()*1000)
	return true
}

// median of what was taken; 0 where nothing was.
func (s *subject) median(name string) time.Duration {
	list := slices.Clone(s.times[name])
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)/2]
}

func (b *bench) page() string {
	var p strings.Builder
	fmt.Fprintf(&p, "# Applications, measured\n\nWritten by `make bench-compose` on %s: medians in milliseconds of whole commands, smaller is better.\n", time.Now().UTC().Format("2006-01-02"))
	fmt.Fprintf(&p, "The ratio is that of `berth compose` to docker-compose %s.\n\n| case |", reference)
	line := "|---|"
	var ours, theirs *subject
	for _, s := range b.subjects {
		fmt.Fprintf(&p, " %s |", s.name)
		line += "---:|"
		switch s.name {
		case "berth":
			ours = s
		case reference:
			theirs = s
		}
	}
	fmt.Fprintf(&p, " ratio | goal | reached |\n%s---:|---|---|\n", line)
	for _, c := range cases {
		fmt.Fprintf(&p, "| %s |", c.name)
		for _, s := range b.subjects {
			if m := s.median(c.name); m > 0 {
				fmt.Fprintf(&p, " %.0f |", m.Seconds()*1000)
			} else {
				p.WriteString(" – |")
			}
		}
		ratio, reached := "–", "not measured"
		var mine, other time.Duration
		if ours != nil {
			mine = ours.median(c.name)
		}
		if theirs != nil {
			other = theirs.median(c.name)
		}
		if mine > 0 && (c.ratio == 0 || other > 0) {
			reached = "yes"
			if c.ratio > 0 && float64(mine) > c.ratio*float64(other) || c.limit > 0 && mine > c.limit {
				reached = "no"
			}
		}
		if mine > 0 && other > 0 {
			ratio = fmt.Sprintf("%.3f", float64(mine)/float64(other))
		}
		fmt.Fprintf(&p, " %s | %s | %s |\n", ratio, c.goal(), reached)
	}
	for _, s := range b.subjects {
		for _, name := range slices.Sorted(maps.Keys(s.failed)) {
			fmt.Fprintf(&p, "\n%s, %s: %s\n", s.name, name, s.failed[name])
		}
	}
	return p.String()
}

func (c one) goal() string {
	var parts []string
	if c.ratio > 0 {
		parts = append(parts, fmt.Sprintf("≤ %g", c.ratio))
	}
	if c.limit > 0 {
		parts = append(parts, fmt.Sprintf("≤ %d ms", c.limit.Milliseconds()))
	}
	return strings.Join(parts, " and ")
}
