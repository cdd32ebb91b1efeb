package docker

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	api "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Content types of streams (Docker Engine API, "Attach to a container").
const (
	rawStream         = "application/vnd.docker.raw-stream"
	multiplexedStream = "application/vnd.docker.multiplexed-stream"
)

// framer writes one of the two streams in docker's frames: a byte that names
// the stream, three zeros, four bytes of length, then the payload.
type framer struct {
	mu     *sync.Mutex // both streams share a connection
	w      io.Writer
	stream byte
}

func (f *framer) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	header := make([]byte, 8, 8+len(p))
	header[0] = f.stream
	binary.BigEndian.PutUint32(header[4:], uint32(len(p)))
	if _, err := f.w.Write(append(header, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// pair gives the writers of both streams; a terminal has one, without frames.
func pair(w io.Writer, tty bool) (stdout, stderr io.Writer) {
	if tty {
		return w, w
	}
	mu := &sync.Mutex{}
	return &framer{mu, w, 1}, &framer{mu, w, 2}
}

// hijack takes the connection over and answers the upgrade.
func hijack(w http.ResponseWriter, r *request, kind string) (net.Conn, *bufio.Reader, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	if r.Header.Get("Upgrade") != "" {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", kind)
	} else {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n", rawStream)
	}
	if err != nil {
		_ = conn.Close()
	}
	return conn, buf.Reader, err
}

// headLimit is how long a client may take to read the head of an answer.
const headLimit = time.Second

// headTaken returns when the client has read the head. docker-py reads it with
// a buffer that it then leaves behind, and with it the output that has come
// along: an exec here can end before such a client has read a byte. Over TCP
// nobody tells what a client has read.
func headTaken(conn net.Conn) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	_ = u.SetWriteDeadline(time.Now().Add(headLimit))
	_ = raw.Write(func(fd uintptr) bool { // asked again whenever the client has read
		unread, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
		return err != nil || unread == 0
	})
	_ = u.SetWriteDeadline(time.Time{})
}

func streamType(version int, tty bool) string {
	if version >= 42 && !tty {
		return multiplexedStream
	}
	return rawStream
}

// serve runs the attachment that begin gives on a hijacked connection.
func (d *Door) serve(w http.ResponseWriter, r *request, tty, stdin bool, begin func() (container.Attachment, error)) error {
	conn, in, err := hijack(w, r, streamType(r.version, tty))
	if err != nil {
		return nil
	}
	defer conn.Close()
	stdout, stderr := pair(conn, tty)
	a, err := begin()
	if err != nil {
		_, text := dialect(err)
		_, _ = fmt.Fprintf(stdout, "%s\r\n", text)
		return nil
	}
	headTaken(conn)
	var input io.Reader
	if stdin {
		input = in
	}
	if err := a.Serve(input, stdout, stderr); err != nil && !errors.Is(err, container.ErrDetached) {
		d.log.Debug("attachment ended", "error", err)
	}
	// The client learns the end of output before the connection goes.
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	return nil
}

func attachOptions(r *request) container.AttachOptions {
	return container.AttachOptions{
		Stdin: r.flag("stdin"), Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Stream: r.flag("stream"), Logs: r.flag("logs"), DetachKeys: r.Form.Get("detachKeys"),
	}
}

func (d *Door) attach(w http.ResponseWriter, r *request) error {
	o := attachOptions(r)
	a, err := d.o.Containers.Attach(r.Context(), r.PathValue("id"), o)
	if err != nil {
		return err
	}
	defer a.Close() // also where the connection could not be taken over
	return d.serve(w, r, a.TTY(), o.Stdin, func() (container.Attachment, error) { return a, nil })
}

func (d *Door) attachWS(w http.ResponseWriter, r *request) error {
	o := attachOptions(r)
	if r.version < 42 {
		o.Stdin, o.Stdout, o.Stderr = true, true, true
	}
	if !o.Stdin && !o.Stdout && !o.Stderr {
		o.Stdin, o.Stdout, o.Stderr = true, true, true
	}
	a, err := d.o.Containers.Attach(r.Context(), r.PathValue("id"), o)
	if err != nil {
		return err
	}
	ws, err := websocket.Accept(w, r.Request, nil) // refuses another origin
	if err != nil {
		a.Close()
		return nil
	}
	conn := websocket.NetConn(context.WithoutCancel(r.Context()), ws, websocket.MessageBinary)
	defer conn.Close()
	if err := a.Serve(conn, conn, conn); err != nil && !errors.Is(err, container.ErrDetached) {
		d.log.Debug("attachment ended", "error", err)
	}
	return nil
}

func (d *Door) createExec(w http.ResponseWriter, r *request) error {
	var b api.ExecCreateRequest
	if err := decode(r, &b); err != nil {
		return err
	}
	s := container.ExecSpec{
		Cmd: b.Cmd, Env: b.Env, User: b.User, WorkingDir: b.WorkingDir, TTY: b.Tty, Stdin: b.AttachStdin, Stdout: b.AttachStdout, Stderr: b.AttachStderr,
		Privileged: b.Privileged, DetachKeys: b.DetachKeys,
	}
	if b.ConsoleSize != nil && r.version >= 42 {
		s.ConsoleSize = *b.ConsoleSize
	}
	id, err := d.o.Containers.ExecCreate(r.Context(), r.PathValue("id"), s)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, map[string]string{"Id": id})
	return nil
}

func (d *Door) startExec(w http.ResponseWriter, r *request) error {
	var b api.ExecStartRequest
	if err := decode(r, &b); err != nil {
		return err
	}
	x, err := d.o.Containers.ExecGet(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if b.ConsoleSize != nil && !x.Spec.TTY {
		return fault.Invalidf("console size is only supported when TTY is enabled")
	}
	if b.Detach {
		if _, err := d.o.Containers.ExecStart(r.Context(), x.ID, true, b.ConsoleSize); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	// As docker: the connection is taken over first, and a failed start is told on it.
	return d.serve(w, r, x.Spec.TTY, x.Spec.Stdin, func() (container.Attachment, error) {
		return d.o.Containers.ExecStart(context.WithoutCancel(r.Context()), x.ID, false, b.ConsoleSize)
	})
}

func (d *Door) resizeExec(w http.ResponseWriter, r *request) error {
	h, width, err := size(r)
	if err != nil {
		return err
	}
	if err := d.o.Containers.ExecResize(r.Context(), r.PathValue("id"), h, width); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (d *Door) inspectExec(w http.ResponseWriter, r *request) error {
	x, err := d.o.Containers.ExecGet(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	p := &api.ExecProcessConfig{Tty: x.Spec.TTY, User: x.Spec.User, Privileged: &x.Spec.Privileged, Entrypoint: x.Spec.Cmd[0], Arguments: x.Spec.Cmd[1:]}
	writeJSON(w, http.StatusOK, api.ExecInspectResponse{
		ID: x.ID, Running: x.Running, ExitCode: x.ExitCode, ProcessConfig: p, OpenStdin: x.Spec.Stdin, OpenStdout: x.Spec.Stdout, OpenStderr: x.Spec.Stderr,
		CanRemove: x.CanRemove, ContainerID: string(x.ContainerID), DetachKeys: []byte(x.Spec.DetachKeys), Pid: x.Pid,
	})
	return nil
}

// logTime has nine digits always, so that columns align.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

func (d *Door) logs(w http.ResponseWriter, r *request) error {
	o := container.LogOptions{Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Follow: r.flag("follow"), Details: r.flag("details"), Tail: -1}
	if !o.Stdout && !o.Stderr {
		return fault.Invalidf("Bad parameters: you must choose at least one stream")
	}
	if t := r.Form.Get("tail"); t != "" && t != "all" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 0 {
			n = -1 // as docker: what is no number is all
		}
		o.Tail = n
	}
	var err error
	if o.Since, err = parseTime(r.Form.Get("since")); err != nil {
		return fault.Invalidf("invalid value for \"since\": %w", err)
	}
	if o.Until, err = parseTime(r.Form.Get("until")); err != nil {
		return fault.Invalidf("invalid value for \"until\": %w", err)
	}
	c, err := d.o.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	begun := false
	follower := &calm{w: w}
	defer follower.close()
	var out, errs io.Writer
	begin := func() {
		begun = true
		w.Header().Set("Content-Type", streamType(r.version, c.Spec.TTY))
		w.WriteHeader(http.StatusOK)
		var to io.Writer = w
		if o.Follow {
			_ = http.NewResponseController(w).Flush()
			to = follower
		}
		out, errs = pair(to, c.Spec.TTY)
	}
	stamps := r.flag("timestamps")
	if o.Follow {
		begin()
	}
	err = d.o.Containers.Logs(r.Context(), string(c.ID), o, func(rec container.LogRecord) error {
		if !begun {
			begin()
		}
		line := rec.Line
		if o.Details {
			line = append([]byte(details(rec.Attrs)+" "), line...)
		}
		if stamps {
			line = append([]byte(rec.Time.UTC().Format(logTime)+" "), line...)
		}
		to := out
		if rec.Stderr {
			to = errs
		}
		_, err := to.Write(line)
		return err
	})
	switch {
	case err != nil && begun:
		d.log.Debug("logs ended", "error", err)
		return nil
	case err == nil && !begun:
		begin()
	}
	return err
}

func details(attrs map[string]string) string {
	var list []string
	for k, v := range attrs {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// parseTime reads seconds with a fraction, as clients send times.
func parseTime(text string) (time.Time, error) {
	if text == "" || text == "0" {
		return time.Time{}, nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		if t, terr := time.Parse(time.RFC3339Nano, text); terr == nil {
			return t, nil
		}
		return time.Time{}, err
	}
	nanos := int64(0)
	if fraction != "" {
		padded := (fraction + "000000000")[:9]
		if nanos, err = strconv.ParseInt(padded, 10, 64); err != nil {
			return time.Time{}, err
		}
	}
	return time.Unix(seconds, nanos), nil
}

func (d *Door) export(w http.ResponseWriter, r *request) error {
	if _, err := d.o.Containers.Get(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return d.download(w, func(out io.Writer) error { return d.o.Containers.Export(r.Context(), r.PathValue("id"), out) })
}

// download sends an archive. A failure before the first byte is told; a later
// one breaks the connection, so that nobody takes half an archive for a whole.
func (d *Door) download(w http.ResponseWriter, send func(io.Writer) error) error {
	out := &lazy{w: w}
	err := send(out)
	if err != nil && out.begun {
		d.log.Warn("archive not sent", "error", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

type lazy struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lazy) Write(p []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-tar")
	}
	return l.w.Write(p)
}

func statHeader(st container.PathStat) string {
	b, _ := json.Marshal(api.PathStat{Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.ModTime, LinkTarget: st.LinkTarget})
	return base64.StdEncoding.EncodeToString(b)
}

func archivePath(r *request) (string, error) {
	p := r.Form.Get("path")
	if p == "" {
		return "", fault.Invalidf("bad parameter: 'path' cannot be empty")
	}
	return p, nil
}

func (d *Door) getArchive(w http.ResponseWriter, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		st, err := d.o.Containers.StatPath(r.Context(), r.PathValue("id"), p)
		if err != nil {
			return err
		}
		w.Header().Set("X-Docker-Container-Path-Stat", statHeader(st))
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return d.download(w, func(out io.Writer) error {
		return d.o.Containers.CopyFrom(r.Context(), r.PathValue("id"), p, func(st container.PathStat) io.Writer {
			w.Header().Set("X-Docker-Container-Path-Stat", statHeader(st))
			return out
		})
	})
}

func (d *Door) putArchive(w http.ResponseWriter, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	if err := d.o.Containers.CopyTo(r.Context(), r.PathValue("id"), p, r.Body, r.flag("noOverwriteDirNonDir"), r.flag("copyUIDGID")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
