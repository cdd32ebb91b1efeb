package output

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth/core/container"
)

// cursor tells how much of a run's spools the log holds.
type cursor struct {
	Offset [2]int64 // bytes of the spools of stdout and stderr
	Inode  uint64   // the log file's
	Size   int64    // of the log file then
}

// format turns records into bytes of a log file and back.
type format interface {
	encode(b *bytes.Buffer, r container.LogRecord)
	// next reads one record; io.EOF at the end, io.ErrUnexpectedEOF in the
	// middle of a record that is being written.
	next(r *bufio.Reader) (rec container.LogRecord, size int64, err error)
}

// writer appends to the log of one container. Both streams share it.
type writer struct {
	path   string
	format format
	limit  rotation
	mark   *os.File // holds the cursor

	mu   sync.Mutex
	file *os.File
	at   cursor
	buf  bytes.Buffer
	more chan struct{} // closed and replaced when records were appended
	over bool
}

func (o *Output) writer(c container.Container, dir string) (*writer, error) {
	if driver(c.Spec.Log) == "none" {
		return nil, nil
	}
	limit, err := limits(c.Spec.Log)
	if err != nil {
		return nil, err
	}
	w := &writer{path: o.logFile(c), format: formatOf(c.Spec.Log, c), limit: limit, more: make(chan struct{})}
	if err := os.MkdirAll(filepath.Dir(w.path), 0o710); err != nil {
		return nil, err
	}
	if w.file, err = os.OpenFile(w.path, os.O_CREATE|os.O_RDWR, 0o640); err != nil {
		return nil, err
	}
	if w.mark, err = os.OpenFile(filepath.Join(dir, "cursor"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	if err := w.recover(); err != nil {
		return nil, errors.Join(err, w.file.Close(), w.mark.Close())
	}
	return w, nil
}

// recover goes back to what the cursor says is whole.
func (w *writer) recover() error {
	info, err := w.file.Stat()
	if err != nil {
		return err
	}
	inode, size := info.Sys().(*syscall.Stat_t).Ino, info.Size()
	b := make([]byte, 36)
	if n, err := w.mark.ReadAt(b, 0); n == len(b) && err == nil && crc32.ChecksumIEEE(b[:32]) == binary.LittleEndian.Uint32(b[32:]) {
		u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		w.at = cursor{[2]int64{int64(u(0)), int64(u(1))}, u(2), int64(u(3))}
		switch {
		case w.at.Inode != inode:
			size = 0 // the log was rotated after this cursor, and nothing written since
		case w.at.Size < size:
			size = w.at.Size
		}
		if err := w.file.Truncate(size); err != nil {
			return err
		}
	}
	w.at.Inode, w.at.Size = inode, size
	return w.save()
}

func (w *writer) save() error {
	b := make([]byte, 36)
	for i, v := range []uint64{uint64(w.at.Offset[0]), uint64(w.at.Offset[1]), w.at.Inode, uint64(w.at.Size)} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[32:], crc32.ChecksumIEEE(b[:32]))
	_, err := w.mark.WriteAt(b, 0)
	return err
}

// append writes records and then the cursor: stream's spool is logged up to offset.
func (w *writer) append(records []container.LogRecord, stream int, offset int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Reset()
	for _, r := range records {
		w.format.encode(&w.buf, r)
	}
	if w.limit.size > 0 && w.at.Size > 0 && w.at.Size+int64(w.buf.Len()) > w.limit.size {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	n, err := w.file.WriteAt(w.buf.Bytes(), w.at.Size)
	if err != nil {
		return err
	}
	w.at.Size += int64(n)
	w.at.Offset[stream] = offset
	err = w.save()
	close(w.more)
	w.more = make(chan struct{})
	return err
}

// rotate moves the log to .1, that to .2 and so on; the oldest goes.
func (w *writer) rotate() error {
	if w.limit.files == 1 {
		// One file only: it begins anew.
		if err := os.Remove(w.path); err != nil {
			return err
		}
	}
	for i := w.limit.files - 1; i >= 1; i-- {
		from := w.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", w.path, i-1)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", w.path, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_ = w.file.Close()
	w.file = f
	w.at.Inode, w.at.Size = info.Sys().(*syscall.Stat_t).Ino, 0
	return w.save()
}

func (w *writer) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	close(w.more)
	_ = w.file.Close()
	_ = w.mark.Close()
}

func formatOf(cfg container.LogConfig, c container.Container) format {
	if driver(cfg) == "json-file" {
		return jsonFormat{attrs: attributes(cfg, c)}
	}
	return framed{}
}

// jsonFormat is docker's json-file: one JSON object a line.
type jsonFormat struct{ attrs map[string]string }

type jsonLine struct {
	Log    string            `json:"log,omitempty"`
	Stream string            `json:"stream,omitempty"`
	Attrs  map[string]string `json:"attrs,omitempty"`
	Time   time.Time         `json:"time"`
}

func (f jsonFormat) encode(b *bytes.Buffer, r container.LogRecord) {
	line := jsonLine{Log: string(r.Line), Stream: "stdout", Attrs: f.attrs, Time: r.Time.UTC()}
	if r.Stderr {
		line.Stream = "stderr"
	}
	e := json.NewEncoder(b) // ends with a newline, as docker's lines do
	_ = e.Encode(line)      // strings and a time cannot fail
}

func (jsonFormat) next(r *bufio.Reader) (rec container.LogRecord, size int64, err error) {
	b, err := r.ReadBytes('\n')
	if err != nil {
		if len(b) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return rec, 0, err
	}
	var l jsonLine
	if err := json.Unmarshal(b, &l); err != nil {
		return rec, int64(len(b)), nil // a broken line is left out
	}
	return container.LogRecord{Stderr: l.Stream == "stderr", Time: l.Time, Line: []byte(l.Log), Attrs: l.Attrs}, int64(len(b)), nil
}

// framed is Berth's own: length, time, stream, line, and the length again so
// that a log can be read from its end.
type framed struct{}

const frameHeader = 4 + 8 + 1

func (framed) encode(b *bytes.Buffer, r container.LogRecord) {
	var h [frameHeader]byte
	size := uint32(frameHeader + len(r.Line) + 4)
	binary.LittleEndian.PutUint32(h[:], size)
	binary.LittleEndian.PutUint64(h[4:], uint64(r.Time.UnixNano()))
	if r.Stderr {
		h[12] = 1
	}
	b.Write(h[:])
	b.Write(r.Line)
	var tail [4]byte
	binary.LittleEndian.PutUint32(tail[:], size)
	b.Write(tail[:])
}

func (framed) next(r *bufio.Reader) (rec container.LogRecord, size int64, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return rec, 0, err
	}
	n := int64(binary.LittleEndian.Uint32(h[:]))
	if n < frameHeader+4 || n > frameHeader+4+maxLine {
		return rec, 0, fmt.Errorf("log is damaged: a record of %d bytes", n)
	}
	line := make([]byte, n-frameHeader)
	if _, err := io.ReadFull(r, line); err != nil {
		return rec, 0, io.ErrUnexpectedEOF
	}
	return container.LogRecord{Stderr: h[12] == 1, Time: time.Unix(0, int64(binary.LittleEndian.Uint64(h[4:]))), Line: line[:len(line)-4]}, n, nil
}

func sameInode(info os.FileInfo, inode uint64) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return !ok || st.Ino == inode
}
