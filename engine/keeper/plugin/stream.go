package plugin

import (
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// streams translates a client's wishes. Fifos and files become the process's
// own streams; only a terminal needs somebody between.
func streams(o runtime.IO) (keeper.StreamSet, keeper.Fifos, error) {
	var f keeper.Fifos
	for _, s := range []struct {
		from string
		to   *string
	}{{o.Stdin, &f.Stdin}, {o.Stdout, &f.Stdout}, {o.Stderr, &f.Stderr}} {
		path, err := streamPath(s.from)
		if err != nil {
			return keeper.StreamSet{}, f, err
		}
		*s.to = path
	}
	if o.Terminal {
		return keeper.StreamSet{TTY: true}, keeper.Fifos{}, nil
	}
	return keeper.StreamSet{}, f, nil
}

func streamPath(name string) (string, error) {
	if !strings.Contains(name, "://") {
		return name, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		return "", fault.Invalidf("stream %q: %w", name, err)
	}
	if u.Scheme != "fifo" && u.Scheme != "file" {
		return "", fault.Unsupportedf("streams of kind %s:// are not supported by runtime %s", u.Scheme, Name)
	}
	return u.Path, nil
}

// pump moves bytes between a terminal and a client's fifos. A nil one does nothing.
type pump struct {
	tty, in, out *os.File
	work         sync.WaitGroup
}

// attach takes the keeper's pipes. The ends of fifos stay with the keeper.
func (p *process) attach(pipes keeper.Pipes) error {
	tty := pipes.TTY
	pipes.TTY = nil
	pipes.Close()
	if tty == nil {
		return nil
	}
	made := &pump{tty: tty}
	// Opened for both, a fifo neither blocks nor ends when its client goes.
	open := func(name string, other int) (*os.File, error) {
		path, err := streamPath(name)
		if err != nil || path == "" {
			return nil, err
		}
		flags := other
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeNamedPipe != 0 {
			flags = os.O_RDWR | syscall.O_NONBLOCK
		}
		return os.OpenFile(path, flags, 0o600)
	}
	var err error
	if made.in, err = open(p.io.Stdin, os.O_RDONLY); err == nil {
		made.out, err = open(p.io.Stdout, os.O_WRONLY|os.O_APPEND|os.O_CREATE)
	}
	if err != nil {
		made.close()
		return err
	}
	made.run()
	p.pump = made
	return nil
}

func (m *pump) run() {
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		var to io.Writer = io.Discard
		if m.out != nil {
			to = m.out
			defer m.out.Close()
		}
		_, _ = io.Copy(to, m.tty) // ends with EIO when the last process is gone
	}()
	if m.in != nil {
		m.work.Add(1)
		go func() {
			defer m.work.Done()
			_, _ = io.Copy(m.tty, m.in)
		}()
	}
}

func (m *pump) closeInput() {
	if m != nil && m.in != nil {
		_ = m.in.Close()
	}
}

// close gives up what a client has not read.
func (m *pump) close() {
	if m == nil {
		return
	}
	for _, f := range []*os.File{m.in, m.out, m.tty} {
		if f != nil {
			_ = f.Close()
		}
	}
	m.work.Wait()
}
