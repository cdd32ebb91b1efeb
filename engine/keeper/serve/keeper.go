package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// server holds all containers of one engine.
//
//	dir/state/<id>/   libcontainer's own state
//	dir/procs/<ref>   one record a process, so that a new keeper finds it
//	dir/exits/<ref>   one record an exit that the daemon has not acknowledged
type server struct {
	dir, build string
	log        *slog.Logger

	mu          sync.Mutex
	containers  map[string]*container
	subscribers map[*keeper.Wire]bool
	stop        func()
}

func newKeeper(dir, build string, log *slog.Logger) (*server, error) {
	k := &server{dir: dir, build: build, log: log, containers: map[string]*container{}, subscribers: map[*keeper.Wire]bool{}}
	for _, sub := range []string{"state", "procs", "exits"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
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
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
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
		k.mu.Lock()
		delete(k.subscribers, w)
		k.mu.Unlock()
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
	if err := w.Send(reply, streams...); err != nil {
		k.log.Warn("answer not sent", "op", f.Op, "error", err)
	}
	if f.Op == "shutdown" && reply.Failure == nil {
		k.stop()
	}
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
		return simple(&ref, func() error { return k.forgetExit(ref) })
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
		return nil, none, k.subscribe(w)
	case "shutdown":
		k.mu.Lock()
		n := len(k.containers)
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

// subscribe sends all exits that nobody has acknowledged, then new ones as they come.
func (k *server) subscribe(w *keeper.Wire) error {
	// Under the lock no exit can be journaled twice or fall between.
	k.mu.Lock()
	defer k.mu.Unlock()
	exits, err := k.journaled()
	if err != nil {
		return err
	}
	for _, e := range exits {
		if err := send(w, e); err != nil {
			return err
		}
	}
	k.subscribers[w] = true
	return nil
}

func send(w *keeper.Wire, e keeper.Exit) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return w.Send(keeper.Frame{Op: "exit", Body: body})
}

// publish journals an exit, then tells those who listen.
func (k *server) publish(e keeper.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := write(k.exitPath(e.Ref), e); err != nil {
		k.log.Error("exit not journaled", "container", e.ID, "error", err)
	}
	for w := range k.subscribers {
		if err := send(w, e); err != nil {
			delete(k.subscribers, w)
		}
	}
}

func (k *server) exitPath(r keeper.Ref) string { return filepath.Join(k.dir, "exits", fileName(r)) }
func (k *server) procPath(r keeper.Ref) string { return filepath.Join(k.dir, "procs", fileName(r)) }

func fileName(r keeper.Ref) string {
	if r.Exec == "" {
		return r.ID
	}
	return r.ID + "." + r.Exec
}

func (k *server) forgetExit(r keeper.Ref) error {
	if err := os.Remove(k.exitPath(r)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (k *server) journaled() ([]keeper.Exit, error) {
	return readAll[keeper.Exit](filepath.Join(k.dir, "exits"), k.log)
}

// readAll reads each record of a folder; one that is broken is told and left out.
func readAll[T any](dir string, log *slog.Logger) ([]T, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".tmp" {
			_ = os.Remove(filepath.Join(dir, e.Name()))
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var one T
		if err := json.Unmarshal(b, &one); err != nil {
			log.Error("record is broken", "file", e.Name(), "error", err)
			continue
		}
		all = append(all, one)
	}
	return all, nil
}

// write replaces a small file whole. The run folder is memory: a power cut ends
// every process in it too, so nothing is synced.
func write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return os.Rename(path+".tmp", path)
}
