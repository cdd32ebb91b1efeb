package buildkit

import (
	"io"
	"os"
	"sync"
	"time"

	"context"

	bk "github.com/moby/buildkit/executor"
)

// drainLimit is how long the output of an ended process is waited for: only a
// process that it left behind can still hold it open.
const drainLimit = 2 * time.Second

func streams(p bk.ProcessInfo) Streams {
	return Streams{TTY: p.Meta.Tty, Stdin: p.Stdin != nil, Stdout: p.Stdout != nil, Stderr: p.Stderr != nil && !p.Meta.Tty}
}

// flow copies between a process's pipes and those who wanted them.
type flow struct {
	pipes  Pipes
	p      bk.ProcessInfo
	output sync.WaitGroup
	once   sync.Once
}

func (x *executor) connect(k key, p bk.ProcessInfo, pipes Pipes) *flow {
	f := &flow{pipes: pipes, p: p}
	read := func(to io.WriteCloser, from *os.File) {
		if to == nil || from == nil {
			return
		}
		f.output.Add(1)
		go func() {
			defer f.output.Done()
			_, _ = io.Copy(to, from) // its end is the process's, or a terminal's EIO
		}()
	}
	read(p.Stdout, pipes.Stdout)
	if !p.Meta.Tty {
		read(p.Stderr, pipes.Stderr)
	}
	if p.Stdin != nil && pipes.Stdin != nil {
		go func() {
			_, _ = io.Copy(pipes.Stdin, p.Stdin)
			if !p.Meta.Tty {
				_ = pipes.Stdin.Close()
				if err := x.o.Runner.CloseStdin(context.Background(), k.id, k.exec); err != nil {
					x.o.Logger.Debug("input not closed", "step", k.id, "error", err)
				}
			}
		}()
	}
	return f
}

// finish waits for the output and closes all.
func (f *flow) finish() {
	done := make(chan struct{})
	go func() { f.output.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainLimit):
	}
	f.abort()
	<-done
}

// abort closes all, on both sides.
func (f *flow) abort() {
	f.once.Do(func() {
		for _, file := range []*os.File{f.pipes.Stdin, f.pipes.Stdout, f.pipes.Stderr} {
			if file != nil {
				_ = file.Close()
			}
		}
		if f.p.Stdin != nil {
			_ = f.p.Stdin.Close()
		}
		for _, w := range []io.WriteCloser{f.p.Stdout, f.p.Stderr} {
			if w != nil {
				_ = w.Close()
			}
		}
	})
}
