package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

// journal holds each exit as a file until the daemon has acknowledged it, and
// tells those who listen. Nobody who listens slowly holds up another or the
// keeper itself: each has a queue, as long as there are processes at most.
type journal struct {
	dir string
	log *slog.Logger

	mu        sync.Mutex
	listeners map[*keeper.Wire]*listener
}

// listener is one daemon that wants to know of exits.
type listener struct {
	wire *keeper.Wire
	wake chan struct{} // holds one token while queue is not empty
	done chan struct{}

	mu    sync.Mutex
	queue []keeper.Exit
	told  map[keeper.Ref]int // pids of exits that were journaled when it came
}

// keep writes an exit down. It is told only afterwards (tell): what nobody
// has heard of cannot be acknowledged before it is written.
func (j *journal) keep(e keeper.Exit) error {
	return write(filepath.Join(j.dir, fileName(e.Ref)), e)
}

func (j *journal) tell(e keeper.Exit) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range j.listeners {
		l.push(e)
	}
}

// join tells w of all exits that are not acknowledged, then of each that comes.
func (j *journal) join(w *keeper.Wire) error {
	l := &listener{wire: w, wake: make(chan struct{}, 1), done: make(chan struct{}), told: map[keeper.Ref]int{}}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.listeners[w] != nil {
		return fault.Conflictf("this connection listens already")
	}
	exits, err := j.all()
	if err != nil {
		return err
	}
	for _, e := range exits {
		l.push(e)
		l.told[e.Ref] = e.Pid
	}
	j.listeners[w] = l
	go l.run()
	return nil
}

func (j *journal) leave(w *keeper.Wire) {
	j.mu.Lock()
	l := j.listeners[w]
	delete(j.listeners, w)
	j.mu.Unlock()
	if l != nil {
		close(l.done)
	}
}

func (l *listener) push(e keeper.Exit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if pid, ok := l.told[e.Ref]; ok {
		delete(l.told, e.Ref)
		if pid == e.Pid {
			return
		}
	}
	l.queue = append(l.queue, e)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run ends with the connection, which the conversation closes.
func (l *listener) run() {
	for {
		select {
		case <-l.wake:
		case <-l.done:
			return
		}
		l.mu.Lock()
		exits := l.queue
		l.queue = nil
		l.mu.Unlock()
		for _, e := range exits {
			body, err := json.Marshal(e)
			if err != nil {
				continue
			}
			if err := l.wire.Send(keeper.Frame{Op: "exit", Body: body}); err != nil {
				return
			}
		}
	}
}

func (j *journal) forget(r keeper.Ref) error {
	if err := checkRef(r); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(j.dir, fileName(r))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (j *journal) all() ([]keeper.Exit, error) { return readAll[keeper.Exit](j.dir, j.log) }

// one gives the exit of a process that was journaled, if it was.
func (j *journal) one(r keeper.Ref, pid int) (e keeper.Exit, ok bool) {
	b, err := os.ReadFile(filepath.Join(j.dir, fileName(r)))
	if err != nil || json.Unmarshal(b, &e) != nil {
		return keeper.Exit{}, false
	}
	return e, e.Pid == pid
}

func (k *server) procPath(r keeper.Ref) string { return filepath.Join(k.dir, "procs", fileName(r)) }

// fileName of a process's records. No id holds the sign between both.
func fileName(r keeper.Ref) string {
	if r.Exec == "" {
		return r.ID
	}
	return r.ID + "@" + r.Exec
}

// idLimit bounds an id in bytes: two of them and a sign fit a file's name.
const idLimit = 120

// validID tells whether an id may name a file. Not a regular expression: that
// would be compiled in the first steps of every container.
func validID(id string) bool {
	if id == "" || len(id) > idLimit || id[0] == '.' || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("_+.-", rune(c)) {
			return false
		}
	}
	return true
}

// checkRef refuses ids that could leave a folder as a file's name.
func checkRef(r keeper.Ref) error {
	if !validID(r.ID) || r.Exec != "" && !validID(r.Exec) {
		return fault.Invalidf("invalid id %q", fileName(r))
	}
	return nil
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
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // acknowledged just now
		}
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
