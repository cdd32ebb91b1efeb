// Package output moves what containers write to their logs and to those who
// are attached, and reads logs back. It must not know how processes run.
//
// No byte is lost or doubled when the daemon is killed. Bytes go from a
// container's pipe to a spool file by splice(2), which takes exactly what it
// writes; whole lines of the spool are appended to the log; then a cursor
// says how much of the spools the log holds, and how long the log was:
//
//	pipe ──splice──▶ spool ──lines──▶ log
//	                   │                └── cursor: offsets in the spools, the log's inode and size
//	                   └── subscribers
//
// A new daemon cuts the log back to the cursor's size and goes on from the
// cursor's offsets. All files are written before the next step begins, and
// page cache outlives a process. (The bytes of a terminal cannot be spliced:
// they are read and written, and a kill between the two system calls loses them.)
//
// Lines of one log have rising times, also across its two streams and across
// restarts, unless the clock is set back by more than a second.
package output

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Options of an Output.
type Options struct {
	Dir     string              // logs: Dir/<id>/
	Run     string              // spools, best in memory: Run/<id>.<pid>/
	Default container.LogConfig // of containers that name no driver; its zero value is the driver local
	Logger  *slog.Logger
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
	out := &Output{o: o, now: map[container.ID]*pump{}}
	if o.Default.Driver != "" {
		if err := out.Check(o.Default); err != nil {
			return nil, fmt.Errorf("default log driver: %w", err)
		}
	}
	return out, os.MkdirAll(o.Run, 0o700)
}

// Check validates a log driver and its options.
func (o *Output) Check(cfg container.LogConfig) error {
	_, err := parse(o.resolve(cfg))
	return err
}

// resolve puts the default in where no driver is named.
func (o *Output) resolve(cfg container.LogConfig) container.LogConfig {
	if cfg.Driver == "" && len(cfg.Options) == 0 {
		cfg = o.o.Default
	}
	if cfg.Driver == "" {
		cfg.Driver = o.o.Default.Driver
	}
	if cfg.Driver == "" {
		cfg.Driver = "local"
	}
	return cfg
}

// LogPath is the file that inspect shows.
func (o *Output) LogPath(c container.Container) string {
	if o.resolve(c.Spec.Log).Driver != "json-file" {
		return ""
	}
	return o.logPath(c)
}

func (o *Output) logPath(c container.Container) string {
	var name string
	switch o.resolve(c.Spec.Log).Driver {
	case "json-file":
		name = string(c.ID) + "-json.log"
	case "local":
		name = filepath.Join("local-logs", "container.log")
	default:
		name = "container-cached.log"
	}
	return filepath.Join(o.o.Dir, string(c.ID), name)
}

// Forget removes a container's log and spools.
func (o *Output) Forget(c container.Container) error {
	path := o.logPath(c)
	var errs []error
	for _, f := range logFiles(path, true) {
		errs = append(errs, os.Remove(f))
	}
	if filepath.Base(filepath.Dir(path)) == "local-logs" {
		_ = os.Remove(filepath.Dir(path)) // it may be absent
	}
	for _, d := range o.spools(c.ID) {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// spools lists the folders of runs of a container whose end was not seen.
func (o *Output) spools(id container.ID) (dirs []string) {
	entries, err := os.ReadDir(o.o.Run)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), string(id)+".") {
			dirs = append(dirs, filepath.Join(o.o.Run, e.Name()))
		}
	}
	return dirs
}

// Pump takes the pipes of a run over. When ctx ends it stops as if the daemon
// were killed: another Pump of the same run continues.
func (o *Output) Pump(ctx context.Context, c container.Container, p container.Pipes) (container.Stream, error) {
	cfg := o.resolve(c.Spec.Log)
	s, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.o.Run, fmt.Sprintf("%s.%d", c.ID, c.State.Pid))
	_, missing := os.Stat(dir)
	for _, old := range o.spools(c.ID) {
		if old != dir {
			o.salvage(c, s, old)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	pu := &pump{o: o, c: c, dir: dir, stdin: p.Stdin, drained: make(chan struct{})}
	if s.keeps {
		if pu.log, err = o.openLog(c, s, dir); err != nil {
			return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
		}
	}
	if s.remote != nil {
		if pu.sink, err = openSink(s, c, cfg, missing == nil, o.o.Logger); err != nil {
			pu.abandon()
			return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
		}
	}
	for i, f := range []*os.File{p.Stdout, p.Stderr} {
		if f == nil {
			continue
		}
		if err := pu.open(i, f); err != nil {
			pu.abandon()
			return nil, err
		}
	}
	o.mu.Lock()
	o.now[c.ID] = pu
	o.mu.Unlock()
	pu.run(ctx)
	return pu, nil
}

// salvage logs what a run, whose end no daemon saw, left in its spools.
func (o *Output) salvage(c container.Container, s settings, dir string) {
	pu := &pump{o: o, c: c, dir: dir, drained: make(chan struct{})}
	var err error
	if s.keeps {
		if pu.log, err = o.openLog(c, s, dir); err == nil {
			for i := range 2 {
				if _, missing := os.Stat(spoolPath(dir, i)); missing == nil {
					err = errors.Join(err, pu.open(i, nil))
				}
			}
		}
	}
	if err != nil {
		// It cannot stay: read later it would come behind what follows now.
		o.o.Logger.Warn("spool of an earlier run not read", "container", c.ID, "error", errors.Join(err, os.RemoveAll(dir)))
		return
	}
	for _, r := range pu.readers {
		r.process(true)
		_ = r.spool.Close()
	}
	pu.finish()
}

func (o *Output) pumpOf(id container.ID) *pump {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now[id]
}

var errNotReadable = fault.Unsupportedf("configured logging driver does not support reading")
