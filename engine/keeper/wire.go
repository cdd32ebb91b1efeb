package keeper

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Wire carries frames over a unix stream socket: four bytes of length, then
// JSON. Descriptors travel with the first byte of their frame.
type Wire struct {
	conn *net.UnixConn
	mu   sync.Mutex // one frame is written at a time
}

// NewWire takes conn over.
func NewWire(conn *net.UnixConn) *Wire { return &Wire{conn: conn} }

// Close ends the connection; a blocked Receive returns.
func (w *Wire) Close() error { return w.conn.Close() }

// Send writes one frame. The files stay the caller's.
func (w *Wire) Send(f Frame, files ...*os.File) error {
	payload, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if len(payload) > MaxFrame {
		return fmt.Errorf("message of %d bytes exceeds the limit of %d", len(payload), MaxFrame)
	}
	message := make([]byte, 4+len(payload))
	binary.BigEndian.PutUint32(message, uint32(len(payload)))
	copy(message[4:], payload)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, file := range files {
			raw, err := file.SyscallConn()
			if err != nil {
				return err
			}
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n, _, err := w.conn.WriteMsgUnix(message, oob, nil)
	if err != nil {
		return err
	}
	if n < len(message) {
		_, err = w.conn.Write(message[n:])
	}
	return err
}

// Receive reads one frame with the files that came along, which are non-blocking.
func (w *Wire) Receive() (f Frame, files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	header := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, _, _, err := w.conn.ReadMsgUnix(header, oob)
	if err != nil {
		return f, nil, err
	}
	if n == 0 {
		return f, nil, io.EOF
	}
	if files, err = rights(oob[:oobn]); err != nil {
		return f, files, err
	}
	if _, err = io.ReadFull(w.conn, header[n:]); err != nil {
		return f, files, err
	}
	size := binary.BigEndian.Uint32(header)
	if size > MaxFrame {
		return f, files, fmt.Errorf("message of %d bytes exceeds the limit of %d", size, MaxFrame)
	}
	payload := make([]byte, size)
	if _, err = io.ReadFull(w.conn, payload); err != nil {
		return f, files, err
	}
	return f, files, json.Unmarshal(payload, &f)
}

func rights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			// Non-blocking before NewFile: then waiting for it holds no thread.
			if err := unix.SetNonblock(fd, true); err != nil {
				_ = unix.Close(fd)
				return files, err
			}
			files = append(files, os.NewFile(uintptr(fd), "pipe"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Files gives the streams of a set in the order in which they travel.
func (s StreamSet) count() int {
	if s.TTY {
		return 1
	}
	n := 0
	for _, b := range []bool{s.Stdin, s.Stdout, s.Stderr} {
		if b {
			n++
		}
	}
	return n
}

// Pipes are the daemon's ends of a process's streams. With a terminal all of
// it is TTY. A stream that does not exist is nil.
type Pipes struct {
	TTY, Stdin, Stdout, Stderr *os.File
}

// Close closes all ends.
func (p Pipes) Close() { closeAll([]*os.File{p.TTY, p.Stdin, p.Stdout, p.Stderr}) }

// List gives the streams with their set, in the order in which they travel.
func (p Pipes) List() (StreamSet, []*os.File) {
	if p.TTY != nil {
		return StreamSet{TTY: true}, []*os.File{p.TTY}
	}
	var files []*os.File
	for _, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr} {
		if f != nil {
			files = append(files, f)
		}
	}
	return StreamSet{Stdin: p.Stdin != nil, Stdout: p.Stdout != nil, Stderr: p.Stderr != nil}, files
}

// Sort gives travelled files their names back.
func Sort(s StreamSet, files []*os.File) (p Pipes, err error) {
	if len(files) != s.count() {
		closeAll(files)
		return p, fmt.Errorf("%d descriptors came where %d were announced", len(files), s.count())
	}
	if s.TTY {
		p.TTY = files[0]
		return p, nil
	}
	next := func(have bool) (f *os.File) {
		if have {
			f, files = files[0], files[1:]
		}
		return f
	}
	p.Stdin, p.Stdout, p.Stderr = next(s.Stdin), next(s.Stdout), next(s.Stderr)
	return p, nil
}
