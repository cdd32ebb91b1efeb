// Package output moves what containers write to their logs and to those who
// are attached, and reads logs back. It must not know how processes run.
//
// No line is lost or doubled when the daemon is killed: bytes move from a
// container's pipe into a spool file by splice(2), which consumes exactly what
// it writes; lines of the spool go to the log, and a cursor tells how much of
// the spool the log holds and how long the log then was. A new daemon cuts the
// log back to that length and goes on from there. (Bytes of a terminal are
// read and written: of them a kill may lose what was just typed out.)
package output

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Limits of logs.
const (
	maxLine         = 16 << 10 // bytes; longer lines are cut into parts
	defaultSize     = 20 << 20 // bytes of one log file of the driver local
	defaultFiles    = 5
	spoolLimit      = 4 << 20 // bytes of a spool after which what is logged is freed
	spliceChunk     = 1 << 20
	maxOptionNumber = 1 << 40
)

// Drivers that are known, by name.
var drivers = map[string][]string{
	"local":     {"max-size", "max-file", "compress", "mode", "max-buffer-size"},
	"json-file": {"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size"},
	"none":      nil,
}

// Options of an Output.
type Options struct {
	Dir    string // logs: Dir/<id>/
	Run    string // spools, in memory: Run/<id>.<pid>/
	Logger *slog.Logger
}

// Output implements core's container.Output.
type Output struct {
	o   Options
	mu  sync.Mutex
	now map[container.ID]*pump // of present runs
}

// New makes an Output over its folders.
func New(o Options) (*Output, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Output{o: o, now: map[container.ID]*pump{}}, os.MkdirAll(o.Run, 0o700)
}

// Drivers lists the log drivers that are supported.
func Drivers() []string {
	var names []string
	for n := range drivers {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Check validates a log driver and its options.
func (o *Output) Check(cfg container.LogConfig) error {
	accepted, ok := drivers[driver(cfg)]
	if !ok {
		return fault.Invalidf("logger: no log driver named '%s' is registered", cfg.Driver)
	}
	for k := range cfg.Options {
		if !slices.Contains(accepted, k) {
			return fault.Invalidf("unknown log opt '%s' for %s log driver", k, driver(cfg))
		}
	}
	_, err := limits(cfg)
	return err
}

func driver(cfg container.LogConfig) string {
	if cfg.Driver == "" {
		return "local"
	}
	return cfg.Driver
}

// rotation bounds a log.
type rotation struct {
	size  int64 // bytes of one file; 0 is unbounded
	files int
}

func limits(cfg container.LogConfig) (r rotation, err error) {
	if driver(cfg) == "local" {
		r = rotation{defaultSize, defaultFiles}
	} else {
		r = rotation{0, 1}
	}
	if v := cfg.Options["max-size"]; v != "" {
		if r.size, err = parseSize(v); err != nil {
			return r, err
		}
	}
	if v := cfg.Options["max-file"]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 1000 {
			return r, fault.Invalidf("max-file cannot be less than 1")
		}
		r.files = n
		if n > 1 && r.size == 0 {
			return r, fault.Invalidf("max-file option is set to %d but max-size is not set", n)
		}
	}
	return r, nil
}

func parseSize(text string) (int64, error) {
	lower := strings.TrimSuffix(strings.ToLower(text), "b")
	unit := int64(1)
	for suffix, u := range map[string]int64{"k": 1 << 10, "m": 1 << 20, "g": 1 << 30} {
		if rest, ok := strings.CutSuffix(lower, suffix); ok {
			lower, unit = rest, u
			break
		}
	}
	n, err := strconv.ParseInt(lower, 10, 64)
	if err != nil || n <= 0 || n > maxOptionNumber/unit {
		return 0, fault.Invalidf("invalid size: '%s'", text)
	}
	return n * unit, nil
}

// LogPath is the file that inspect shows.
func (o *Output) LogPath(c container.Container) string {
	if driver(c.Spec.Log) != "json-file" {
		return ""
	}
	return o.logFile(c)
}

func (o *Output) logFile(c container.Container) string {
	name := string(c.ID) + "-json.log"
	if driver(c.Spec.Log) == "local" {
		name = filepath.Join("local-logs", "container.log")
	}
	return filepath.Join(o.o.Dir, string(c.ID), name)
}

// Forget removes a container's log and spools.
func (o *Output) Forget(c container.Container) error {
	path := o.logFile(c)
	var errs []error
	files, err := filepath.Glob(path + "*")
	errs = append(errs, err)
	for _, f := range files {
		errs = append(errs, os.Remove(f))
	}
	spools, err := filepath.Glob(filepath.Join(o.o.Run, string(c.ID)+".*"))
	errs = append(errs, err)
	for _, d := range spools {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// Pump takes the pipes of a run over.
func (o *Output) Pump(_ context.Context, c container.Container, p container.Pipes) (container.Stream, error) {
	dir := filepath.Join(o.o.Run, fmt.Sprintf("%s.%d", c.ID, c.State.Pid))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w, err := o.writer(c, dir)
	if err != nil {
		return nil, err
	}
	s := &pump{o: o, c: c, dir: dir, log: w, stdin: p.Stdin, drained: make(chan struct{})}
	var readers []*reader
	for i, f := range []*os.File{p.Stdout, p.Stderr} {
		if f == nil {
			continue
		}
		r, err := s.open(i, f)
		if err != nil {
			return nil, err
		}
		readers = append(readers, r)
	}
	o.mu.Lock()
	o.now[c.ID] = s
	o.mu.Unlock()
	s.run(readers)
	return s, nil
}

func (o *Output) pumpOf(id container.ID) *pump {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now[id]
}
