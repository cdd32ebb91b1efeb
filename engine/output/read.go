package output

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/core/container"
)

const (
	windowSize = 64 << 10  // bytes of a log read at once
	searchStop = 256 << 10 // bytes that are read rather than searched
	maxRecord  = 16 << 20  // bytes of one record of a foreign log
)

// section is one file of a log and how much of it is to be read.
type section struct {
	file *os.File
	size int64
}

// logFiles lists a log's files, oldest first. With all, left-overs too.
func logFiles(path string, all bool) []string {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	base := filepath.Base(path)
	type numbered struct {
		name string
		n    int
	}
	var found []numbered
	plain := map[int]bool{}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), base)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSuffix(rest, packedExt), "."))
		switch {
		case rest == "":
			n = 0
		case err != nil || n < 1:
			if !all || !strings.HasSuffix(rest, ".tmp") {
				continue
			}
		}
		if !strings.HasSuffix(rest, packedExt) {
			plain[n] = true
		}
		found = append(found, numbered{e.Name(), n})
	}
	if !all {
		// Where both forms are there, packing was cut short.
		found = slices.DeleteFunc(found, func(f numbered) bool { return strings.HasSuffix(f.name, packedExt) && plain[f.n] })
	}
	slices.SortFunc(found, func(a, b numbered) int { return b.n - a.n })
	names := make([]string, len(found))
	for i, f := range found {
		names[i] = filepath.Join(filepath.Dir(path), f.name)
	}
	return names
}

func openSection(name string) (section, error) {
	var s section
	var err error
	if strings.HasSuffix(name, packedExt) {
		s.file, err = unpack(name)
	} else {
		s.file, err = os.Open(name)
	}
	if err != nil {
		return s, err
	}
	info, err := s.file.Stat()
	if err != nil {
		return s, errors.Join(err, s.file.Close())
	}
	s.size = info.Size()
	return s, nil
}

// reading is one request for a log.
type reading struct {
	format format
	path   string
	log    *logFile // nil where nothing is written now
	opt    container.LogOptions
	attrs  map[string]string // of all records, where the format keeps none
	emit   func(container.LogRecord) error
}

// Logs emits the records of a container's log in order. A record's line
// belongs to the receiver.
func (o *Output) Logs(ctx context.Context, c container.Container, opt container.LogOptions, emit func(container.LogRecord) error) error {
	cfg := o.resolve(c.Spec.Log)
	s, err := parse(cfg)
	if err != nil {
		return err
	}
	if !s.keeps {
		return errNotReadable
	}
	r := &reading{format: o.formatOf(c), path: o.logPath(c), opt: opt, emit: emit}
	if _, isJSON := r.format.(jsonLines); opt.Details && !isJSON {
		r.attrs = fileAttributes(cfg, c)
	}
	if p := o.pumpOf(c.ID); p != nil {
		r.log = p.log
	}
	if opt.Follow && !opt.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, opt.Until)
		defer cancel()
	}
	err = r.run(ctx)
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

var errEnough = errors.New("the last wanted record was seen")

func (r *reading) run(ctx context.Context) error {
	sections, current, err := r.open()
	defer func() {
		for _, s := range sections {
			_ = s.file.Close()
		}
	}()
	if err != nil {
		return err
	}
	first, from, err := r.begin(ctx, sections)
	if err != nil {
		return err
	}
	at := from
	for i := first; i < len(sections); i++ {
		if at, err = r.forward(ctx, sections[i], from); err != nil {
			return err
		}
		from = 0
	}
	if !r.opt.Follow || r.log == nil || ctx.Err() != nil {
		return nil
	}
	if !current {
		return nil // someone has removed the log
	}
	f := follower{r: r, file: sections[len(sections)-1].file, at: at}
	sections = sections[:len(sections)-1]
	defer f.close()
	return f.run(ctx)
}

// open opens all files; current says that the last is the one being written.
// While it is written no rotation can come between.
func (r *reading) open() (sections []section, current bool, err error) {
	if r.log != nil {
		r.log.mu.Lock()
		defer r.log.mu.Unlock()
		r.log.packing.Wait()
	}
	for _, name := range logFiles(r.path, false) {
		s, err := openSection(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return sections, false, err
		}
		current = name == r.path
		if current && r.log != nil {
			s.size = min(s.size, r.log.at.Size) // what is whole
		}
		sections = append(sections, s)
	}
	return sections, current, nil
}

func (r *reading) wanted(rec container.LogRecord) bool {
	return (rec.Stderr && r.opt.Stderr || !rec.Stderr && r.opt.Stdout) &&
		(r.opt.Since.IsZero() || !rec.Time.Before(r.opt.Since)) && (r.opt.Until.IsZero() || !rec.Time.After(r.opt.Until))
}

// begin finds where to start, without reading what is not wanted: from the
// end for a tail, by halving for a time.
func (r *reading) begin(ctx context.Context, sections []section) (first int, from int64, err error) {
	last := len(sections) - 1
	if r.opt.Tail >= 0 {
		left := r.opt.Tail
		for i := last; i >= 0 && left > 0; i-- {
			if err := ctx.Err(); err != nil {
				return 0, 0, err
			}
			if from, left, err = r.backward(sections[i], left); err != nil {
				return 0, 0, err
			}
			first = i
		}
		if r.opt.Tail == 0 && last >= 0 {
			return last, sections[last].size, nil
		}
		return first, from, nil
	}
	if r.opt.Since.IsZero() {
		return 0, 0, nil
	}
	for first < last {
		rec, ok := lastRecord(r.format, sections[first].file, sections[first].size)
		if !ok || !rec.Time.Before(r.opt.Since) {
			break
		}
		first++
	}
	if last >= 0 {
		from = r.search(sections[first])
	}
	return first, from, nil
}

// search finds a record near to, but not after, the first that is wanted.
func (r *reading) search(s section) int64 {
	low, high := int64(0), s.size
	for high-low > searchStop {
		middle := low + (high-low)/2
		b := make([]byte, windowSize)
		n, err := s.file.ReadAt(b, middle)
		if err != nil && !errors.Is(err, io.EOF) {
			return low
		}
		start := r.format.sync(b[:n])
		if start < 0 {
			return low
		}
		rec, _, ok := r.format.decode(b[start:n])
		if !ok {
			return low
		}
		if rec.Time.Before(r.opt.Since) {
			low = middle + int64(start)
		} else {
			high = middle
		}
	}
	return low
}

// backward finds where the last n wanted records of a file begin. left is how
// many it has too few.
func (r *reading) backward(s section, n int) (at int64, left int, err error) {
	end := s.size
	var b []byte // the file's bytes before end
	for n > 0 {
		low := end - int64(len(b))
		start, stop := r.format.prev(b, low == 0)
		if start < 0 {
			if low == 0 {
				return 0, n, nil
			}
			if len(b) > maxRecord {
				b = b[:windowSize] // damaged: go on before it
				end = low + windowSize
				continue
			}
			step := min(low, max(windowSize, int64(len(b))))
			grown := make([]byte, step+int64(len(b)))
			copy(grown[step:], b)
			if _, err := s.file.ReadAt(grown[:step], low-step); err != nil && !errors.Is(err, io.EOF) {
				return 0, n, err
			}
			b = grown
			continue
		}
		rec, _, ok := r.format.decode(b[start:stop])
		if ok && !r.opt.Since.IsZero() && rec.Time.Before(r.opt.Since) {
			return low + int64(stop), 0, nil // none before it is wanted
		}
		if ok && r.wanted(rec) {
			n--
		}
		end = low + int64(start)
		b = b[:start]
	}
	return end, 0, nil
}

// forward emits the wanted records of a file from an offset on, and tells where they end.
func (r *reading) forward(ctx context.Context, s section, from int64) (int64, error) {
	var kept []byte // of a record that is not whole yet
	size := windowSize
	for at := from + int64(len(kept)); at < s.size; {
		if ctx.Err() != nil {
			return from, errEnough
		}
		// Fresh each time: records keep parts of it.
		b := make([]byte, len(kept)+int(min(int64(size), s.size-at)))
		copy(b, kept)
		n, err := s.file.ReadAt(b[len(kept):], at)
		if n == 0 {
			if errors.Is(err, io.EOF) {
				return from, nil // truncated meanwhile
			}
			return from, err
		}
		at += int64(n)
		b = b[:len(kept)+n]
		for len(b) > 0 {
			rec, length, ok := r.format.decode(b)
			if length == 0 && at >= s.size {
				// What looks like a record's beginning is damage.
				if next := r.format.sync(b[1:]); next >= 0 {
					length = next + 1
				}
			}
			if length == 0 {
				break
			}
			b = b[length:]
			from += int64(length)
			if !ok {
				continue
			}
			if err := r.give(rec); err != nil {
				return from, err
			}
		}
		if kept = b; len(kept) > maxRecord {
			from += int64(len(kept))
			kept = nil
		}
		if len(kept) >= size {
			size *= 2
		}
	}
	return from, nil
}

func (r *reading) give(rec container.LogRecord) error {
	if !r.opt.Until.IsZero() && rec.Time.After(r.opt.Until) {
		return errEnough
	}
	if !r.wanted(rec) {
		return nil
	}
	switch {
	case !r.opt.Details:
		rec.Attrs = nil
	case r.attrs != nil:
		rec.Attrs = r.attrs
	}
	return r.emit(rec)
}

// follower emits what is appended until the run has ended. It waits for the
// writer's word. When it is so slow that files are rotated away before it has
// read them, it goes on with the oldest that is left.
type follower struct {
	r    *reading
	file *os.File
	at   int64
}

func (f *follower) close() { _ = f.file.Close() }

func (f *follower) run(ctx context.Context) error {
	for ctx.Err() == nil {
		inode, size, more := f.r.log.state()
		info, err := f.file.Stat()
		if err != nil {
			return err
		}
		own := inodeOf(info)
		if own != inode {
			size = info.Size() // rotated: it is whole
		} else if size < f.at {
			f.at = 0 // someone has truncated it
		}
		if f.at, err = f.r.forward(ctx, section{f.file, size}, f.at); err != nil {
			return err
		}
		switch {
		case own != inode:
			if err := f.next(own); err != nil {
				return err
			}
		case more == nil:
			return nil
		default:
			select {
			case <-more:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// next opens the file that follows the one with this inode, else the oldest.
func (f *follower) next(inode uint64) error {
	r := f.r
	r.log.mu.Lock() // no rotation meanwhile
	defer r.log.mu.Unlock()
	names := slices.DeleteFunc(logFiles(r.path, false), func(n string) bool { return strings.HasSuffix(n, packedExt) })
	from := 0
	for i, name := range names {
		if info, err := os.Stat(name); err == nil && inodeOf(info) == inode && i+1 < len(names) {
			from = i + 1
		}
	}
	if len(names) == 0 {
		return os.ErrNotExist
	}
	file, err := os.Open(names[from])
	if err != nil {
		return err
	}
	f.close()
	f.file, f.at = file, 0
	return nil
}
