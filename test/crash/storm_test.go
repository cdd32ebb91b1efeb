package crash

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/test/kit"
)

// Short by default; for an hour: go test ./test/crash -timeout 2h -kills 200 -cycles 3000 -seed 7
var (
	seed   = flag.Uint64("seed", 1, "seed of what is killed, and when")
	kills  = flag.Int("kills", 6, "how often a program is killed under load")
	cycles = flag.Int("cycles", 120, "containers made and removed to see whether anything grows")
)

// storm is an engine under load that is killed again and again.
type storm struct {
	t    *testing.T
	e    *kit.Engine
	dice *rand.Rand
	quit chan struct{}
	work sync.WaitGroup
	done atomic.Int64 // operations of the load, whatever their end

	mu    sync.Mutex
	state map[string]string // container's name → what its client was told last: made, removed, unsure
}

// load makes, starts, waits for and removes containers as a client would,
// and remembers what it was told.
func (s *storm) load(worker int) {
	defer s.work.Done()
	ctx := context.Background()
	for n := 0; ; n++ {
		select {
		case <-s.quit:
			return
		default:
		}
		name := fmt.Sprintf("load-%d-%d", worker, n)
		s.tell(name, "unsure")
		body := map[string]any{"Image": "true:test", "HostConfig": map[string]any{"NetworkMode": []string{"none", "bridge"}[n%2]}}
		if s.call(ctx, "POST", "/containers/create?name="+name, body) != nil {
			continue
		}
		s.tell(name, "made")
		_ = s.call(ctx, "POST", "/containers/"+name+"/start", nil)
		_ = s.call(ctx, "POST", "/containers/"+name+"/wait", nil)
		if n%4 == 3 {
			continue // some stay
		}
		s.tell(name, "unsure")
		if s.call(ctx, "DELETE", "/containers/"+name+"?force=1", nil) == nil {
			s.tell(name, "removed")
		}
	}
}

func (s *storm) call(ctx context.Context, method, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, 4*limit)
	defer cancel()
	err := s.e.API.Call(ctx, method, path, body, nil)
	s.done.Add(1)
	if errors.Is(err, context.DeadlineExceeded) {
		s.t.Errorf("%s %s was not answered within %v", method, path, 4*limit)
	}
	if err != nil && strings.Contains(err.Error(), "connect: ") {
		// No daemon: its next one is waited for.
		_ = kit.Until(limit, func() error { return s.e.Ping(ctx) })
	}
	return err
}

func (s *storm) tell(name, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state[name] = what
}

// follow reads a log as it grows, again from its start after each kill, and
// tells of lines that are missing or come twice.
func (s *storm) follow(name string) {
	defer s.work.Done()
	for {
		if err := s.followOnce(name); err != nil {
			s.t.Errorf("%s: %v", name, err)
			return
		}
		select {
		case <-s.quit:
			return
		default:
		}
		_ = kit.Until(limit, func() error { return s.e.Ping(context.Background()) })
	}
}

func (s *storm) followOnce(name string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.quit:
			cancel()
		case <-ctx.Done():
		}
	}()
	r, err := s.e.API.Do(ctx, http.MethodGet, "/containers/"+name+"/logs?follow=1&stdout=1", "", nil)
	if err != nil {
		return nil // killed meanwhile
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	in := bufio.NewReader(r.Body)
	head := make([]byte, 8)
	for want := 1; ; want++ {
		if _, err := io.ReadFull(in, head); err != nil {
			return nil
		}
		line := make([]byte, int(head[4])<<24|int(head[5])<<16|int(head[6])<<8|int(head[7]))
		if _, err := io.ReadFull(in, line); err != nil {
			return nil
		}
		if got := strings.TrimSuffix(string(line), "\n"); got != fmt.Sprintf("line %d", want) {
			return fmt.Errorf("line %d of the followed log is %q", want, got)
		}
	}
}

func keeperPid(t *testing.T, e *kit.Engine) int {
	t.Helper()
	var v keeper.VersionInfo
	err := kit.Until(limit, func() error {
		c, err := keeper.Connect(context.Background(), keeper.Options{Dir: filepath.Join(e.ExecRoot(), "keeper"), Binary: "/nonexistent"})
		if err != nil {
			return err
		}
		defer c.Close()
		v, err = c.Version(context.Background())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return v.Pid
}

type inspected struct {
	ID           string
	RestartCount int
	State        struct {
		Pid               int
		Status, StartedAt string
	}
}

func inspect(t *testing.T, e *kit.Engine, name string) (i inspected, err error) {
	t.Helper()
	err = e.API.Call(context.Background(), "GET", "/containers/"+name+"/json", nil, &i)
	return i, err
}

// TestStorm kills the daemon and the keeper under load. No container may
// stop, no request to a published port may fail, no line of a log may be lost,
// nothing that was acknowledged may be forgotten, and nothing may be left.
func TestStorm(t *testing.T) {
	e, ports := start(t)
	t.Logf("seed %d, %d kills", *seed, *kills)
	s := &storm{t: t, e: e, dice: rand.New(rand.NewPCG(*seed, 0)), quit: make(chan struct{}), state: map[string]string{}}
	roots := len(rootFolders(t, e))
	before := map[string]inspected{}
	for i := range containers {
		name := fmt.Sprintf("crash%d", i)
		var err error
		if before[name], err = inspect(t, e, name); err != nil {
			t.Fatal(err)
		}
	}
	stop := traffic(ports)
	for i := range 2 {
		s.work.Add(1)
		go s.load(i)
	}
	for i := range 4 {
		s.work.Add(1)
		go s.follow(fmt.Sprintf("crash%d", i*5))
	}
	var longest time.Duration
	orphans := false // the keeper was killed, and the next one may not have the pipes yet
	for range *kills {
		// The moment is as many operations away as the dice say.
		next := s.done.Load() + int64(s.dice.IntN(8))
		if err := kit.Until(4*limit, func() error {
			if s.done.Load() < next {
				return errors.New("the load stands still")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if s.dice.IntN(4) == 0 {
			pid := keeperPid(t, e)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			orphans = true
			continue
		}
		if orphans {
			// Outputs are held by keeper and daemon: what is written while neither
			// lives is lost. A keeper that executes has taken the pipes back before.
			if err := kit.Until(4*limit, func() error { _, err := e.Docker(context.Background(), "exec", "crash0", "true"); return err }); err != nil {
				t.Fatal(err)
			}
			orphans = false
		}
		e.Kill()
		began := time.Now()
		if err := e.Restart(context.Background()); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(began))
		if n := running(t, e); n < containers {
			t.Fatalf("%d of %d containers run", n, containers)
		}
	}
	t.Logf("the API was back after %v at most; %d operations of the load", longest.Round(time.Millisecond), s.done.Load())
	close(s.quit)
	s.work.Wait()
	if asked, failed, err := stop(); failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed: %v", failed, asked, err)
	}
	for name, was := range before {
		i, err := inspect(t, e, name)
		if err != nil {
			t.Fatal(err)
		}
		if i != was {
			t.Errorf("%s is another: %+v, was %+v", name, i, was)
		}
		whole(t, e, name, 20)
	}
	made, removed := 0, 0
	for name, told := range s.state {
		_, err := inspect(t, e, name)
		gone := err != nil && strings.Contains(err.Error(), "404")
		switch {
		case told == "made" && err != nil:
			t.Errorf("%s was acknowledged and is lost: %v", name, err)
		case told == "removed" && !gone:
			t.Errorf("%s was removed and is back: %v", name, err)
		}
		made, removed = made+btoi(told == "made"), removed+btoi(told == "removed")
	}
	t.Logf("%d objects acknowledged and there, %d removed and gone", made, removed)
	drop(t, e)
	// The collector rests between two collections, a minute at most.
	if err := kit.Until(4*limit, func() error {
		// One layer more than before may be there: that of the places for mounts in true:test.
		if now := rootFolders(t, e); len(now) > roots-containers+1 {
			return fmt.Errorf("%d layers are left, there were %d without containers: %v", len(now), roots-containers, now)
		}
		folders, err := os.ReadDir(filepath.Join(e.DataRoot(), "containers"))
		if err == nil && len(folders) > 0 {
			err = fmt.Errorf("folders of containers are left: %v", folders)
		}
		return err
	}); err != nil {
		o, _ := exec.Command("ctr", "-a", e.ExecRoot()+"/containerd.sock", "-n", "moby", "snapshots", "ls").CombinedOutput()
		t.Log(string(o))
		t.Error(err)
	}
	empty(t, e)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// rootFolders lists the layers on disk.
func rootFolders(t *testing.T, e *kit.Engine) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(e.DataRoot(), "containerd/*snapshotter*/snapshots/*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// drop removes all containers.
func drop(t *testing.T, e *kit.Engine) {
	t.Helper()
	out, err := e.Docker(context.Background(), "ps", "-aq")
	if err != nil {
		t.Fatal(err)
	}
	if ids := strings.Fields(out); len(ids) > 0 {
		if _, err := e.Docker(context.Background(), append([]string{"rm", "-f"}, ids...)...); err != nil {
			t.Fatal(err)
		}
	}
}

// size is what an engine holds.
type size struct {
	Files, Goroutines, Descriptors, Keeper int
	Memory                                 int // bytes of daemon and keeper
}

func measure(t *testing.T, e *kit.Engine) (s size) {
	t.Helper()
	var info struct{ NFd, NGoroutines int }
	if err := e.API.Call(context.Background(), "GET", "/info", nil, &info); err != nil {
		t.Fatal(err)
	}
	s.Descriptors, s.Goroutines = info.NFd, info.NGoroutines
	pid := keeperPid(t, e)
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		s.Keeper = len(fds)
	}
	for _, root := range []string{e.DataRoot(), e.ExecRoot()} {
		_ = filepath.WalkDir(root, func(_ string, _ os.DirEntry, err error) error {
			if err == nil {
				s.Files++
			}
			return nil
		})
	}
	for _, pid := range []int{pid, e.Pid()} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			var kb int
			if _, err := fmt.Sscanf(l, "Pss_Anon: %d kB", &kb); err == nil {
				s.Memory += kb << 10
			}
		}
	}
	return s
}

// TestNothingGrows makes and removes containers with all that they use, and
// compares what the engine holds before and after.
func TestNothingGrows(t *testing.T) {
	e := engine(t)
	ctx := context.Background()
	one := func(i int) error {
		name := fmt.Sprint("cycle", i)
		body := map[string]any{"Image": "busybox:test", "Cmd": []string{"sh", "-c", "echo text; read x"}, "OpenStdin": true,
			"ExposedPorts": map[string]any{"80/tcp": map[string]any{}},
			"HostConfig":   map[string]any{"PublishAllPorts": true}, "Volumes": map[string]any{"/vol": map[string]any{}}}
		if err := e.API.Call(ctx, "POST", "/containers/create?name="+name, body, nil); err != nil {
			return err
		}
		if err := e.API.Call(ctx, "POST", "/containers/"+name+"/start", nil, nil); err != nil {
			return err
		}
		var x struct{ ID string }
		if err := e.API.Call(ctx, "POST", "/containers/"+name+"/exec", map[string]any{"Cmd": []string{"true"}, "AttachStdout": true}, &x); err != nil {
			return err
		}
		r, err := e.API.Do(ctx, "POST", "/exec/"+x.ID+"/start", "application/json", strings.NewReader("{}"))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		if err != nil {
			return err
		}
		if r, err = e.API.Do(ctx, "GET", "/containers/"+name+"/logs?stdout=1", "", nil); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		return e.API.Call(ctx, "DELETE", "/containers/"+name+"?force=1&v=1", nil, nil)
	}
	run := func(n int) {
		t.Helper()
		for i := range n {
			if err := one(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(*cycles / 3) // warms up
	before := measure(t, e)
	run(*cycles)
	var after size
	// What is done later than it is answered for is waited for.
	if err := kit.Until(limit, func() error {
		after = measure(t, e)
		if after.Files > before.Files || after.Goroutines > before.Goroutines || after.Descriptors > before.Descriptors || after.Keeper > before.Keeper {
			return errors.New("more than before")
		}
		return nil
	}); err != nil {
		t.Errorf("after %d cycles: %v: before %+v, after %+v", *cycles, err, before, after)
	}
	// Garbage waits for its collector: less than this is no growth of ours.
	const slack = 16 << 20
	if grown := after.Memory - before.Memory; grown > slack {
		t.Errorf("%d cycles cost %d bytes of memory, %d each", *cycles, grown, grown / *cycles)
	}
	text, _ := json.Marshal([2]size{before, after})
	t.Logf("before and after %d cycles: %s", *cycles, text)
	empty(t, e)
}
