package serve

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/engine/keeper/serve/filter"
	"github.com/berth-project/berth/lib/fault"
)

// server holds all containers of one engine.
//
//	dir/state/<id>/   libcontainer's own state
//	dir/procs/<ref>   one record a process, so that a new keeper finds it
//	dir/exits/<ref>   one record an exit that the daemon has not acknowledged
//	dir/making/<id>   one record a container that is being made, for its cgroup
type server struct {
	dir, build string
	plain      bool // all that a process does before its program is libcontainer's
	log        *slog.Logger

	mu         sync.Mutex
	containers map[string]*container
	making     map[string]chan struct{} // ids of containers that are being made; closed when that is over
	stop       func()

	sweeping sync.WaitGroup // of what another keeper left

	exits   journal
	kids    children
	oom     oomWatch
	filters filter.Cache
}

func newKeeper(dir, build string, log *slog.Logger) (*server, error) {
	k := &server{dir: dir, build: build, log: log, containers: map[string]*container{}, making: map[string]chan struct{}{}}
	k.exits = journal{dir: filepath.Join(dir, "exits"), log: log, listeners: map[*keeper.Wire]*listener{}}
	k.kids.running = map[int]bool{}
	k.filters.Log = log
	k.plain = os.Getenv("BERTH_KEEPER_STEPS") == "libcontainer"
	for _, sub := range []string{"state", "procs", "exits", "making"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
		// A keeper that was killed while it wrote has left what nobody reads.
		torn, err := filepath.Glob(filepath.Join(dir, sub, "*.tmp"))
		if err != nil {
			return nil, err
		}
		for _, path := range torn {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	return k, k.adopt()
}

// serve answers until an order to stop comes.
func (k *server) serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k.stop = cancel
	go func() {
		<-ctx.Done()
		_ = l.Close()
	}()
	go k.kids.reapOrphans(ctx)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				k.sweeping.Wait()
				return nil
			}
			return err
		}
		go k.converse(keeper.NewWire(conn))
	}
}

// converse answers one daemon; each request runs by itself.
func (k *server) converse(w *keeper.Wire) {
	defer func() {
		k.exits.leave(w)
		_ = w.Close()
	}()
	for {
		f, files, err := w.Receive()
		if err != nil {
			return
		}
		go k.answer(w, f, files)
	}
}

func (k *server) answer(w *keeper.Wire, f keeper.Frame, files []*os.File) {
	out, pipes, err := k.do(w, f, files)
	defer pipes.Close() // duplicates: the process's own may be closed meanwhile
	reply := keeper.Frame{Seq: f.Seq}
	var streams []*os.File
	switch {
	case err != nil:
		reply.Failure = keeper.Fail(err)
	case out != nil:
		if reply.Body, err = json.Marshal(out); err != nil {
			reply.Failure = keeper.Fail(err)
		}
		_, streams = pipes.List()
	}
	err = w.Send(reply, streams...)
	if s, ok := out.(starting); ok {
		close(s.p.answered)
	}
	if err != nil {
		k.log.Warn("answer not sent", "op", f.Op, "error", err)
		var made keeper.CreateRequest
		if f.Op == "create" && reply.Failure == nil && json.Unmarshal(f.Body, &made) == nil {
			// Who asked is gone, and nobody else knows of it.
			if err := k.delete(keeper.Ref{ID: made.ID}); err != nil {
				k.log.Warn("container that nobody waits for not removed", "container", made.ID, "error", err)
			}
		}
	}
	if f.Op == "shutdown" && reply.Failure == nil {
		k.stop()
	}
}

// starting is the answer to who has started a process.
type starting struct {
	keeper.Started
	p *process
}

func (k *server) do(w *keeper.Wire, f keeper.Frame, files []*os.File) (any, keeper.Pipes, error) {
	var none keeper.Pipes
	simple := func(body any, act func() error) (any, keeper.Pipes, error) {
		if err := json.Unmarshal(f.Body, body); err != nil {
			return nil, none, fault.Invalidf("body of %s: %w", f.Op, err)
		}
		return nil, none, act()
	}
	var ref keeper.Ref
	switch f.Op {
	case "version":
		return keeper.VersionInfo{Protocol: keeper.Version, Build: k.build, Pid: os.Getpid(), Runc: runcVersion}, none, nil
	case "create":
		var r keeper.CreateRequest
		if err := json.Unmarshal(f.Body, &r); err != nil {
			return nil, none, fault.Invalidf("body of create: %w", err)
		}
		return k.create(r)
	case "exec":
		var r keeper.ExecRequest
		if err := json.Unmarshal(f.Body, &r); err != nil {
			return nil, none, fault.Invalidf("body of exec: %w", err)
		}
		return k.exec(r)
	case "start":
		return simple(&ref, func() error { return k.start(ref.ID) })
	case "kill":
		var r keeper.KillRequest
		return simple(&r, func() error { return k.kill(r) })
	case "resize":
		var r keeper.ResizeRequest
		return simple(&r, func() error { return k.resize(r) })
	case "close-stdin":
		return simple(&ref, func() error { return k.closeStdin(ref) })
	case "pause":
		return simple(&ref, func() error { return k.pause(ref.ID, true) })
	case "resume":
		return simple(&ref, func() error { return k.pause(ref.ID, false) })
	case "update":
		var r keeper.UpdateRequest
		return simple(&r, func() error { return k.update(r) })
	case "delete":
		return simple(&ref, func() error { return k.delete(ref) })
	case "ack":
		return simple(&ref, func() error { return k.exits.forget(ref) })
	case "pids":
		var pids []int
		_, _, err := simple(&ref, func() (err error) { pids, err = k.pids(ref.ID); return err })
		return pids, none, err
	case "list":
		return k.list(), none, nil
	case "pipes":
		var p keeper.Pipes
		_, _, err := simple(&ref, func() (err error) { p, err = k.pipes(ref); return err })
		set, _ := p.List()
		return map[string]any{"streams": set}, p, err
	case "adopt-pipes":
		var r keeper.AdoptRequest
		return simple(&r, func() error {
			p, err := keeper.Sort(r.Streams, files)
			if err != nil {
				return err
			}
			return k.adoptPipes(r.Ref, p)
		})
	case "subscribe":
		return nil, none, k.exits.join(w)
	case "shutdown":
		k.mu.Lock()
		n := len(k.containers) + len(k.making)
		k.mu.Unlock()
		if n > 0 {
			return nil, none, fault.Conflictf("the keeper still holds %d containers", n)
		}
		return nil, none, nil
	}
	return nil, none, fault.Unsupportedf("the keeper does not know the operation %q", f.Op)
}

func (k *server) container(id string) (*container, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.containers[id]
	if c == nil {
		return nil, fault.NotFound("container", id)
	}
	return c, nil
}
