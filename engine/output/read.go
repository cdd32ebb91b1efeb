package output

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// attributes are what a log keeps of its container beside the lines.
func attributes(cfg container.LogConfig, c container.Container) map[string]string {
	attrs := map[string]string{}
	for _, k := range strings.Split(cfg.Options["labels"], ",") {
		if v, ok := c.Spec.Labels[k]; ok {
			attrs[k] = v
		}
	}
	labels := pattern(cfg.Options["labels-regex"])
	for k, v := range c.Spec.Labels {
		if labels != nil && labels.MatchString(k) {
			attrs[k] = v
		}
	}
	env := pattern(cfg.Options["env-regex"])
	for _, e := range c.Spec.Env {
		k, v, _ := strings.Cut(e, "=")
		for _, want := range strings.Split(cfg.Options["env"], ",") {
			if k == want {
				attrs[k] = v
			}
		}
		if env != nil && env.MatchString(k) {
			attrs[k] = v
		}
	}
	if tag := cfg.Options["tag"]; tag != "" {
		attrs["tag"] = strings.NewReplacer("{{.ID}}", c.ID.Short(), "{{.FullID}}", string(c.ID), "{{.Name}}", c.Name, "{{.ImageName}}", c.Spec.Image, "{{.ImageFullID}}", c.ImageID).Replace(tag)
	}
	if len(attrs) == 0 {
		return nil
	}
	return attrs
}

func pattern(text string) *regexp.Regexp {
	if text == "" {
		return nil
	}
	r, err := regexp.Compile(text)
	if err != nil {
		return nil
	}
	return r
}

// Logs emits the records of a container's log in order.
func (o *Output) Logs(ctx context.Context, c container.Container, opt container.LogOptions, emit func(container.LogRecord) error) error {
	if driver(c.Spec.Log) == "none" {
		return fault.Unsupportedf("configured logging driver does not support reading")
	}
	f := formatOf(c.Spec.Log, c)
	path := o.logFile(c)
	files := []string{path}
	for i := 1; ; i++ {
		old := fmt.Sprintf("%s.%d", path, i)
		if _, err := os.Stat(old); err != nil {
			break
		}
		files = append([]string{old}, files...)
	}
	wanted := func(r container.LogRecord) bool {
		return (r.Stderr && opt.Stderr || !r.Stderr && opt.Stdout) &&
			(opt.Since.IsZero() || !r.Time.Before(opt.Since)) && (opt.Until.IsZero() || !r.Time.After(opt.Until))
	}
	// Taken before the files are opened: nothing appended meanwhile is missed.
	p := o.pumpOf(c.ID)
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	for _, name := range files {
		file, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		open = append(open, file)
	}
	skip, err := tail(ctx, f, open, wanted, opt.Tail)
	if err != nil {
		return err
	}
	for i, file := range open {
		last := i == len(open)-1
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		pass := func(r container.LogRecord) error {
			if !wanted(r) {
				return nil
			}
			if skip > 0 {
				skip--
				return nil
			}
			if !opt.Details {
				r.Attrs = nil
			}
			return emit(r)
		}
		if last && opt.Follow && p != nil && p.log != nil {
			return follow(ctx, f, path, file, p, opt, pass)
		}
		if _, err := read(ctx, f, file, 0, pass); err != nil {
			return err
		}
	}
	if len(open) == 0 && opt.Follow && p != nil && p.log != nil {
		return follow(ctx, f, path, nil, p, opt, emit)
	}
	return nil
}

// tail counts how many records are to be left out at the beginning.
func tail(ctx context.Context, f format, files []*os.File, wanted func(container.LogRecord) bool, n int) (skip int, err error) {
	if n < 0 {
		return 0, nil
	}
	total := 0
	for _, file := range files {
		if _, err := read(ctx, f, file, 0, func(r container.LogRecord) error {
			if wanted(r) {
				total++
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	return max(0, total-n), nil
}

// read emits whole records from an offset on and returns where they end.
func read(ctx context.Context, f format, file *os.File, from int64, emit func(container.LogRecord) error) (int64, error) {
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return from, err
	}
	b := bufio.NewReaderSize(file, 64<<10)
	for {
		rec, n, err := f.next(b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return from, nil
		}
		if err != nil {
			return from, err
		}
		from += n
		if err := ctx.Err(); err != nil {
			return from, nil
		}
		if rec.Line != nil {
			if err := emit(rec); err != nil {
				return from, err
			}
		}
	}
}

// follow emits what is there and what comes, until the run has ended. It waits
// for the writer's word, and goes over to the new file when the log is rotated.
func follow(ctx context.Context, f format, path string, file *os.File, p *pump, opt container.LogOptions, emit func(container.LogRecord) error) error {
	var at int64
	defer func() {
		if file != nil {
			_ = file.Close()
		}
	}()
	for {
		p.log.mu.Lock()
		more, over, inode := p.log.more, p.log.over, p.log.at.Inode
		p.log.mu.Unlock()
		var err error
		if file == nil {
			if file, err = os.Open(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			at = 0
		}
		if file != nil {
			if at, err = read(ctx, f, file, at, emit); err != nil {
				return err
			}
			if info, err := file.Stat(); err == nil && !sameInode(info, inode) {
				_ = file.Close()
				file = nil
				continue
			}
		}
		if over {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}
