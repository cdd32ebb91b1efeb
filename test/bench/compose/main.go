// Command compose measures applications: `berth compose` on Berth beside
// docker compose v5.6.0 on both engines and docker-compose 1.29.2 on
// docker.io, with the same files and images that are here, in the same run.
// What is timed is what a person waits for: the whole command.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/berth-project/berth/test/kit"
)

func main() { kit.Command("bench-compose", run) }

func run() error {
	out := flag.String("o", "", "write a page of Markdown to this file")
	bin := flag.String("bin", "bin", "folder of Berth's programs, with tools/docker-compose of `make test-tools`")
	n := flag.Int("n", 5, "samples of commands that take less than a second or two; long ones are taken once")
	most := flag.Int("most", 500, "services of the largest application that is started")
	limit := flag.Duration("limit", 3*time.Minute, "how long one command may take; what takes longer is told as such")
	budget := flag.Duration("budget", 10*time.Minute, "after so long no further case is begun")
	only := flag.String("only", "", "take only cases whose name (config of 1 service, flat 500, scale to 100, …) this regular expression matches")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	path, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	if err := os.Setenv("BERTH_TEST_BIN", path); err != nil {
		return err
	}
	ctx, stopped := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stopped()
	subjects, stop, err := subjects(ctx, path)
	defer stop()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(kit.Root(), "files-")
	if err != nil {
		return err
	}
	b := &bench{dir: dir, subjects: subjects, n: *n, most: *most, limit: *limit, budget: *budget, only: wanted, begun: time.Now()}
	b.measure(ctx)
	page := b.page()
	fmt.Print("\n" + page)
	if ctx.Err() != nil {
		return errors.New("interrupted: no page is written")
	}
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(page), 0o644)
}

// subject is one client with one engine.
type subject struct {
	name    string
	program []string
	engine  *kit.Engine
	times   map[string][]time.Duration // by case
	failed  map[string]string          // case → why it could not be measured
	over    map[string]bool            // cases that took longer than the limit
}

// Names of the subjects; the goals are ratios of berth's times to the reference's.
const (
	berth     = "berth compose"
	reference = "1.29.2 on docker.io"
	v5Here    = "v5.6.0 on Berth"
	v5There   = "v5.6.0 on docker.io"
)

// subjects starts the engines; what is missing is said and left out.
func subjects(ctx context.Context, bin string) (list []*subject, stop func(), err error) {
	var engines []*kit.Engine
	stop = func() {
		for _, e := range engines {
			if err := e.Stop(); err != nil {
				fmt.Println(err)
			}
			if e.IsPeer {
				e.RemoveCgroups()
			}
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
		list = append(list, &subject{name: name, program: program, engine: e, times: map[string][]time.Duration{}, failed: map[string]string{}, over: map[string]bool{}})
	}
	v5 := filepath.Join(bin, "tools", "docker-compose")
	add(berth, ours, filepath.Join(bin, "berth"), "compose")
	add(v5Here, ours, v5)
	add(v5There, theirs, v5)
	add(reference, theirs, "/usr/bin/docker-compose")
	if len(list) == 0 {
		return nil, stop, errors.New("nothing to measure")
	}
	return list, stop, nil
}
