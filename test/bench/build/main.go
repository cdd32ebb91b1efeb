// Command build measures whole build commands: of Berth, of docker.io's own
// BuildKit and of buildah, on one machine in one run, with one client for the
// first two. It prints ratios.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/lib/host"
	"github.com/berth-project/berth/test/kit"
)

func main() { kit.Command("bench-build", run) }

func run() error {
	out := flag.String("o", "", "write a page of Markdown to this file")
	bin := flag.String("bin", "bin", "folder of Berth's programs")
	n := flag.Int("n", 10, "repetitions of each measurement")
	only := flag.String("only", "", "measure only names that this regular expression matches")
	alone := flag.Bool("alone", false, "leave the peers out")
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
	builders, end, err := begin(ctx, *alone)
	defer end()
	if err != nil {
		return err
	}
	var results []result
	for _, m := range measurements {
		if !wanted.MatchString(m.name) {
			continue
		}
		r, err := m.take(ctx, builders, *n)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		results = append(results, r)
		fmt.Print(r.lines(builders))
	}
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(page(builders, results, *n)), 0o644)
}

// result is the median of one measurement by builder, in milliseconds.
type result struct {
	measurement
	value map[string]float64
}

// ratio of Berth's time to a peer's.
func (r result) ratio(peer builder) string {
	b, d := r.value[peer.against], r.value[peer.name]
	if b == 0 || d == 0 {
		return "–"
	}
	if b > d {
		return fmt.Sprintf("%.1f", b/d)
	}
	return fmt.Sprintf("1/%.1f", d/b)
}

func (r result) lines(builders []builder) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s\n", r.name)
	for _, b := range builders {
		fmt.Fprintf(&s, "  %-20s %8.0f ms", b.name, r.value[b.name])
		if b.against != "" {
			fmt.Fprintf(&s, "  %s takes %s", b.against, r.ratio(b))
		}
		s.WriteString("\n")
	}
	if r.goal != "" {
		s.WriteString("  goal " + r.goal + " of docker.io\n")
	}
	return s.String()
}

func page(builders []builder, results []result, n int) string {
	f := host.Look()
	var b strings.Builder
	fmt.Fprintf(&b, "# Builds measured\n\nWritten by `make bench-build` on %s, kernel %s, %d processors, %s. Each value is the median of %d whole commands (buildah: of 3 at most), the builders in turn, and in\n"+
		"brackets what Berth takes of it. Each engine is driven by its own client (`berth build`; `docker build` of docker.io), and both by the same one, `docker build` of a newer\n"+
		"docker through buildx, whose own start is in every value and is compared by itself.\n\n",
		f.Distribution, f.Kernel, runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"), n)
	b.WriteString("| what |")
	for _, x := range builders {
		b.WriteString(" " + x.title + " |")
	}
	b.WriteString(" goal |\n|---|" + strings.Repeat("---:|", len(builders)) + "---|\n")
	for _, r := range results {
		b.WriteString("| " + r.name + " |")
		for _, x := range builders {
			fmt.Fprintf(&b, " %.0f ms", r.value[x.name])
			if x.against != "" {
				fmt.Fprintf(&b, " (%s)", r.ratio(x))
			}
			b.WriteString(" |")
		}
		b.WriteString(" " + r.goal + " |\n")
	}
	return b.String()
}

// measurement is one kind of build.
type measurement struct {
	name, goal string // goal is the part of docker.io's time
	// files of the context, by path.
	files func() map[string]string
	// before a sample, which is not measured: of the context's folder; it gives
	// the folder and the build arguments to build with. Nil changes nothing.
	before func(dir string, sample int) (string, []string, error)
}

// take samples the builders in turn, so that what else the machine does meets
// all alike; the first sample of each warms it up.
func (m measurement) take(ctx context.Context, builders []builder, n int) (result, error) {
	r := result{measurement: m, value: map[string]float64{}}
	values := map[string][]float64{}
	dirs := map[string]string{}
	for _, b := range builders {
		dir, err := os.MkdirTemp(kit.Root(), "context-")
		if err != nil {
			return r, err
		}
		defer os.RemoveAll(dir)
		dirs[b.name] = filepath.Join(dir, "0")
		if err := write(dirs[b.name], m.files()); err != nil {
			return r, err
		}
	}
	for i := range n + 1 {
		for _, b := range builders {
			if b.samples > 0 && i > b.samples {
				continue
			}
			var args []string
			if m.before != nil {
				var err error
				if dirs[b.name], args, err = m.before(dirs[b.name], i); err != nil {
					return r, err
				}
			}
			began := time.Now()
			if err := b.build(ctx, dirs[b.name], args); err != nil {
				return r, fmt.Errorf("%s: %w", b.name, err)
			}
			if i > 0 {
				values[b.name] = append(values[b.name], time.Since(began).Seconds()*1000)
			}
		}
	}
	for name, list := range values {
		slices.Sort(list)
		r.value[name] = list[len(list)/2]
	}
	return r, nil
}

func write(dir string, files map[string]string) error {
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// many files of a context, each of a kilobyte.
const many = 10000

var measurements = []measurement{
	{"rebuild of 30 steps, nothing changed", "1/2", func() map[string]string {
		var b strings.Builder
		b.WriteString("FROM " + base + "\n")
		for i := range 10 {
			fmt.Fprintf(&b, "RUN echo %d > /file%d\nCOPY file /copy%d\nENV STEP=%d\n", i, i, i, i)
		}
		return map[string]string{"Dockerfile": b.String(), "file": "x\n"}
	}, nil},
	{"50 × RUN true, cold", "1/8", func() map[string]string {
		return map[string]string{"Dockerfile": "FROM " + base + "\nARG SAMPLE\n" + strings.Repeat("RUN true\n", 50)}
	}, fresh},
	{"COPY of 10,000 files, cold", "", tree, func(dir string, n int) (string, []string, error) {
		// A folder that no builder has seen, with other content.
		next := filepath.Join(filepath.Dir(dir), fmt.Sprint(n+1))
		if err := os.Rename(dir, next); err != nil {
			return "", nil, err
		}
		return next, nil, touch(next, n, many)
	}},
	{"COPY of 10,000 files, one changed", "", tree, func(dir string, n int) (string, []string, error) { return dir, nil, touch(dir, n, 1) }},
	{"8 stages side by side, each RUN sleep 1", "", func() map[string]string {
		var stages, last strings.Builder
		for i := range 8 {
			fmt.Fprintf(&stages, "FROM %s AS s%d\nARG SAMPLE\nRUN sleep 1; echo %d > /out\n", base, i, i)
			fmt.Fprintf(&last, "COPY --from=s%d /out /out%d\n", i, i)
		}
		return map[string]string{"Dockerfile": stages.String() + "FROM " + base + "\n" + last.String()}
	}, fresh},
}

// fresh is an argument that no step of the cache has.
func fresh(dir string, n int) (string, []string, error) {
	return dir, []string{fmt.Sprintf("SAMPLE=%d-%d", n, time.Now().UnixNano())}, nil
}

func tree() map[string]string {
	files := map[string]string{"Dockerfile": "FROM " + base + "\nCOPY tree /tree\n"}
	for i := range many {
		files[treeFile(i)] = fmt.Sprintf("%d %s\n", i, strings.Repeat("x", 1000))
	}
	return files
}

func treeFile(i int) string { return fmt.Sprintf("tree/%02d/%d", i%100, i) }

// touch gives some of the files of a tree other content.
func touch(dir string, sample, some int) error {
	for i := range some {
		f, err := os.OpenFile(filepath.Join(dir, treeFile(i)), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "%d %d", sample, time.Now().UnixNano())
		if again := f.Close(); err == nil {
			err = again
		}
		if err != nil {
			return err
		}
	}
	return nil
}
