package task

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
)

// fifos are the named pipes by which a shim carries a process's streams. The
// shim outlives the daemon and keeps its ends open, so they are found again.
type fifos struct {
	dir  string
	want Streams
	held []*os.File // keep both ends open until the shim has opened its own
}

func (f *fifos) path(name string) string { return filepath.Join(f.dir, name) }

// config tells containerd where the streams are.
func (f *fifos) config() cio.Config {
	c := cio.Config{Terminal: f.want.TTY}
	for name, to := range f.list(&c.Stdin, &c.Stdout, &c.Stderr) {
		*to = f.path(name)
	}
	return c
}

func (f *fifos) list(stdin, stdout, stderr *string) map[string]*string {
	all := map[string]*string{}
	if f.want.Stdin {
		all["stdin"] = stdin
	}
	if f.want.Stdout || f.want.TTY {
		all["stdout"] = stdout
	}
	if f.want.Stderr && !f.want.TTY {
		all["stderr"] = stderr
	}
	return all
}

// makePipes makes the named pipes of a process below dir and opens our ends.
func makePipes(dir string, want Streams) (f *fifos, p container.Pipes, err error) {
	f = &fifos{dir: dir, want: want}
	defer func() {
		if err != nil {
			closePipes(p)
			err = errors.Join(err, f.remove())
		}
	}()
	if err := os.RemoveAll(dir); err != nil {
		return f, p, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return f, p, err
	}
	var unused string
	for name := range f.list(&unused, &unused, &unused) {
		if err := unix.Mkfifo(f.path(name), 0o600); err != nil {
			return f, p, &os.PathError{Op: "mkfifo", Path: f.path(name), Err: err}
		}
		both, err := os.OpenFile(f.path(name), unix.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return f, p, err
		}
		f.held = append(f.held, both)
	}
	p, err = openPipes(dir)
	return f, p, err
}

// openPipes opens our ends of what is in dir. The input has an end only while
// a shim, or we, hold the other one.
func openPipes(dir string) (p container.Pipes, err error) {
	for _, e := range []struct {
		name string
		mode int
		to   **os.File
	}{{"stdin", unix.O_WRONLY, &p.Stdin}, {"stdout", unix.O_RDONLY, &p.Stdout}, {"stderr", unix.O_RDONLY, &p.Stderr}} {
		file, err := os.OpenFile(filepath.Join(dir, e.name), e.mode|unix.O_NONBLOCK, 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue
		}
		if err != nil {
			closePipes(p)
			return container.Pipes{}, err
		}
		*e.to = file
	}
	return p, nil
}

func closePipes(p container.Pipes) {
	for _, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// release leaves the other ends to the shim.
func (f *fifos) release() {
	for _, h := range f.held {
		_ = h.Close()
	}
	f.held = nil
}

func (f *fifos) remove() error {
	f.release()
	return os.RemoveAll(f.dir)
}

// carried implements containerd's cio.IO: the streams are moved elsewhere.
type carried struct{ config cio.Config }

func (c carried) Config() cio.Config { return c.config }
func (carried) Cancel()              {}
func (carried) Wait()                {}
func (carried) Close() error         { return nil }

func (f *fifos) creator() cio.Creator {
	return func(string) (cio.IO, error) { return carried{f.config()}, nil }
}
