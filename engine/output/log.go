package output

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
)

const (
	flushSize   = 256 << 10        // bytes of records written at once
	clockBack   = int64(1e9)       // nanoseconds a clock may go back before times follow it
	complainGap = 10 * time.Second // between messages about a log that cannot be written
)

// cursor tells how much of a run's spools the log holds.
type cursor struct {
	Offset [2]int64 // bytes of the spools of stdout and stderr
	Inode  uint64   // the log file's
	Size   int64    // of the log file then
}

const cursorSize = 36

// logFile is the log of one container while it is written. Both streams share it.
type logFile struct {
	path   string
	format format
	limit  settings
	mark   *os.File // holds the cursor
	logger *slog.Logger

	mu         sync.Mutex // its holder writes: records of the streams do not mix
	file       *os.File
	at         cursor
	last       int64         // time of the latest record
	buf        []byte        // of records; nil while there is nothing to do
	more       chan struct{} // closed when records were appended; nil while nobody waits
	over       bool
	complained time.Time
	packing    sync.WaitGroup // of rotated files
}

func (o *Output) formatOf(c container.Container) format {
	cfg := o.resolve(c.Spec.Log)
	if cfg.Driver == "json-file" {
		return newJSONLines(fileAttributes(cfg, c))
	}
	return framed{}
}

func (o *Output) openLog(c container.Container, s settings, dir string) (*logFile, error) {
	w := &logFile{path: o.logPath(c), format: o.formatOf(c), limit: s, logger: o.o.Logger.With("container", c.ID)}
	if err := os.MkdirAll(filepath.Dir(w.path), 0o710); err != nil {
		return nil, err
	}
	var err error
	if w.file, err = openAppend(w.path, 0); err != nil {
		return nil, err
	}
	if w.mark, err = os.OpenFile(filepath.Join(dir, "cursor"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	if err := w.recover(dir); err != nil {
		return nil, errors.Join(err, w.file.Close(), w.mark.Close())
	}
	return w, nil
}

// openAppend opens a log. Others may truncate it: what is written goes to its end.
func openAppend(path string, flags int) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND|flags, 0o640)
}

// recover goes back to what the cursor says is whole. Without a cursor (a new
// run, or the host was restarted) the log's last whole record is its end.
func (w *logFile) recover(dir string) error {
	info, err := w.file.Stat()
	if err != nil {
		return err
	}
	inode, size := inodeOf(info), info.Size()
	if at, ok := readCursor(w.mark); ok {
		w.at = at
		switch {
		case at.Inode != inode:
			size = 0 // the log was rotated after this cursor, and no cursor written since
		case at.Size < size:
			size = at.Size
		}
	} else if size > 0 {
		if size, err = wholeSize(w.format, w.file, size); err != nil {
			return err
		}
	}
	if size < info.Size() {
		if err := w.file.Truncate(size); err != nil {
			return err
		}
	}
	w.at.Inode, w.at.Size = inode, size
	for i := range w.at.Offset {
		// A spool that is shorter than what was logged of it was removed
		// when its run had ended.
		if info, err := os.Stat(spoolPath(dir, i)); err != nil || info.Size() < w.at.Offset[i] {
			w.at.Offset[i] = 0
		}
	}
	if r, ok := lastRecord(w.format, w.file, size); ok {
		w.last = r.Time.UnixNano()
	} else if old, err := os.Open(rotated(w.path, 1)); err == nil {
		if info, err := old.Stat(); err == nil {
			if r, ok := lastRecord(w.format, old, info.Size()); ok {
				w.last = r.Time.UnixNano()
			}
		}
		_ = old.Close()
	}
	return w.save()
}

func inodeOf(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }

func readCursor(f *os.File) (c cursor, ok bool) {
	var b [cursorSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil || crc32.ChecksumIEEE(b[:32]) != binary.LittleEndian.Uint32(b[32:]) {
		return c, false
	}
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	return cursor{[2]int64{int64(u(0)), int64(u(1))}, u(2), int64(u(3))}, true
}

func (w *logFile) save() error {
	var b [cursorSize]byte
	for i, v := range []uint64{uint64(w.at.Offset[0]), uint64(w.at.Offset[1]), w.at.Inode, uint64(w.at.Size)} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[32:], crc32.ChecksumIEEE(b[:32]))
	_, err := w.mark.WriteAt(b[:], 0)
	return err
}

// entry is a line with the place in its spool where it ends.
type entry struct {
	line
	end int64
}

// append writes lines of one stream, and then the cursor. It gives the lines
// their times: those of a line's parts are the same, which since tells.
// Lines that cannot be written are dropped: a container does not stop
// because a disk is full.
func (w *logFile) append(stream int, lines []entry, since *int64) {
	if len(lines) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now().UnixNano()
	err := w.settle()
	w.buf = (*buffers.Get().(*buffer))[:0]
	for i := range lines {
		l := &lines[i]
		if w.limit.size > 0 && w.at.Size+int64(len(w.buf)) >= w.limit.size {
			if i > 0 {
				err = errors.Join(err, w.flush(stream, lines[i-1].end))
			}
			err = errors.Join(err, w.rotate())
		}
		l.nano = w.stamp(now, l.text, since)
		w.buf = w.format.encode(w.buf, l.line)
		if len(w.buf) >= flushSize || i == len(lines)-1 {
			err = errors.Join(err, w.flush(stream, l.end))
		}
	}
	putBuffer(w.buf)
	w.buf = nil
	if w.more != nil {
		close(w.more)
		w.more = nil
	}
	if err != nil && w.mayComplain() {
		w.logger.Error("log not written: lines are lost", "error", err)
	}
}

// mayComplain keeps a log that fails from filling another. mu is held.
func (w *logFile) mayComplain() bool {
	if time.Since(w.complained) < complainGap {
		return false
	}
	w.complained = time.Now()
	return true
}

func (w *logFile) complain(message string, err error) {
	w.mu.Lock()
	may := w.mayComplain()
	w.mu.Unlock()
	if may {
		w.logger.Warn("output delayed or lost", "cause", message, "error", err)
	}
}

// stamp gives a line a time after all before it.
func (w *logFile) stamp(now int64, text []byte, since *int64) int64 {
	part := len(text) == 0 || text[len(text)-1] != '\n'
	if *since == 0 {
		if now <= w.last && w.last-now < clockBack {
			now = w.last + 1
		}
		w.last = now
		*since = now
	}
	nano := *since
	if !part {
		*since = 0
	}
	return nano
}

// settle notices that someone else has truncated the log.
func (w *logFile) settle() error {
	info, err := w.file.Stat()
	if err == nil {
		w.at.Size = info.Size()
	}
	return err
}

// flush writes what is encoded: the stream's spool is logged up to offset.
func (w *logFile) flush(stream int, offset int64) error {
	n, err := w.file.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil && n > 0 {
		err = errors.Join(err, w.file.Truncate(w.at.Size)) // no half records
		n = 0
	}
	w.at.Size += int64(n)
	w.at.Offset[stream] = offset
	return errors.Join(err, w.save())
}

// rotated is the name of the n-th file behind the log; 1 is the latest.
func rotated(path string, n int) string { return fmt.Sprintf("%s.%d", path, n) }

// rotate moves the log to .1, that to .2 and so on; the oldest goes. Killed
// anywhere in it, the next daemon finds a log that is not the cursor's, and begins it anew.
func (w *logFile) rotate() error {
	w.packing.Wait()
	if w.limit.files == 1 {
		if err := os.Remove(w.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for i := w.limit.files - 1; i >= 1; i-- {
		if i > 1 {
			if err := moveRotated(w.path, i-1, i); err != nil {
				return err
			}
			continue
		}
		if err := os.Rename(w.path, rotated(w.path, 1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	f, err := openAppend(w.path, os.O_TRUNC)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_ = w.file.Close()
	w.file = f
	w.at.Inode, w.at.Size = inodeOf(info), 0
	if w.limit.compress && w.limit.files > 1 {
		w.packing.Go(func() {
			if err := pack(rotated(w.path, 1)); err != nil {
				w.logger.Warn("log not compressed", "error", err)
			}
		})
	}
	return w.save()
}

// moveRotated renames a file, packed or not; the place it goes to is free then of both.
func moveRotated(path string, from, to int) error {
	for _, ext := range []string{"", packedExt} {
		err := os.Rename(rotated(path, from)+ext, rotated(path, to)+ext)
		if errors.Is(err, os.ErrNotExist) {
			if err = os.Remove(rotated(path, to) + ext); errors.Is(err, os.ErrNotExist) {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// state gives what a follower must know: the file's identity and size, and a
// channel that is closed when there is more (nil when there will not be).
func (w *logFile) state() (inode uint64, size int64, more <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return w.at.Inode, w.at.Size, nil
	}
	if w.more == nil {
		w.more = make(chan struct{})
	}
	return w.at.Inode, w.at.Size, w.more
}

func (w *logFile) close() {
	w.packing.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.over = true
	if w.more != nil {
		close(w.more)
		w.more = nil
	}
	_ = w.file.Close()
	_ = w.mark.Close()
}

// wholeSize finds where the last whole record of a log ends.
func wholeSize(f format, file *os.File, size int64) (int64, error) {
	if _, isJSON := f.(jsonLines); !isJSON {
		// Frames are looked for from the end; what follows the last is torn.
		end, found, err := lastFrame(f, file, size)
		if err != nil || found {
			return end, err
		}
		return 0, nil
	}
	var b [4 << 10]byte
	for end := size; end > 0; {
		n := min(end, int64(len(b)))
		if _, err := file.ReadAt(b[:n], end-n); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := n; i > 0; i-- {
			if b[i-1] == '\n' {
				return end - n + i, nil
			}
		}
		end -= n
	}
	return 0, nil
}

func lastFrame(f format, file *os.File, size int64) (end int64, found bool, err error) {
	for length := int64(windowSize); ; length *= 4 {
		length = min(length, size)
		b := make([]byte, length)
		if _, err := file.ReadAt(b, size-length); err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		if start, e := f.prev(b, length == size); start >= 0 {
			return size - length + int64(e), true, nil
		}
		if length == size || length > localSize {
			return 0, false, nil
		}
	}
}

// lastRecord reads the last record of the first size bytes.
func lastRecord(f format, file *os.File, size int64) (r container.LogRecord, ok bool) {
	b := make([]byte, min(size, windowSize))
	if _, err := file.ReadAt(b, size-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return r, false
	}
	start, _ := f.prev(b, int64(len(b)) == size)
	if start < 0 {
		return r, false
	}
	r, _, ok = f.decode(b[start:])
	return r, ok
}

// freeSpace gives the memory of a spool back; offsets stay.
func freeSpace(f *os.File, from, to int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	})
	return errors.Join(err, failed)
}
