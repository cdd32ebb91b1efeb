package keeper_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/fault"
)

var binary string

func TestMain(m *testing.M) { os.Exit(main(m)) }

func main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "keeper-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "berth-keeper")
	build := exec.Command("go", "build", "-tags", "seccomp", "-o", binary, "github.com/berth-project/berth/cmd/berth-keeper")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-keeper does not build:", err)
		return 1
	}
	return m.Run()
}

// world is one keeper in a temporary folder with a busybox root.
type world struct {
	t      testing.TB
	dir    string
	group  string // cgroup above all containers
	client *keeper.Client
}

func newWorld(t testing.TB) *world {
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("skipped: needs /bin/busybox (busybox-static)")
	}
	w := &world{t: t, dir: t.TempDir()}
	w.group = "/keeper-test-" + filepath.Base(filepath.Dir(w.dir)) + "-" + filepath.Base(w.dir)
	if err := os.MkdirAll(filepath.Join(w.dir, "root/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"proc", "dev", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(w.dir, "root", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"busybox", "sh", "true", "cat", "tail", "sleep", "echo"} {
		if err := os.WriteFile(filepath.Join(w.dir, "root/bin", name), busybox, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.connect()
	t.Cleanup(w.close)
	return w
}

func (w *world) connect() {
	w.t.Helper()
	c, err := keeper.Connect(context.Background(), w.options(""))
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(w.dir, "keeper/keeper.log"))
		w.t.Fatalf("%v\n%s", err, log)
	}
	w.client = c
}

func (w *world) options(realm string) keeper.Options {
	return keeper.Options{Dir: filepath.Join(w.dir, "keeper"), Binary: binary, Cgroup: w.group + "-itself", Realm: realm}
}

func (w *world) close() {
	ctx := context.Background()
	all, err := w.client.List(ctx)
	if err != nil {
		w.t.Error(err)
	}
	for _, p := range all {
		if p.Exec == "" {
			if err := w.client.Delete(ctx, p.Ref); err != nil {
				w.t.Error(err)
			}
		}
	}
	if err := w.client.Shutdown(ctx); err != nil {
		w.t.Error(err)
	}
	_ = w.client.Close()
	if w.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(w.dir, "keeper/keeper.log"))
		w.t.Logf("keeper.log:\n%s", log)
	}
	// Nothing of a container may be left; the folder above is ours to remove.
	for _, name := range []string{w.group, w.group + "-itself"} {
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, _ := filepath.Glob(pattern + name)
			for _, d := range dirs {
				left, _ := filepath.Glob(d + "/*/cgroup.procs")
				if len(left) > 0 {
					w.t.Errorf("cgroups are left: %q", left)
				}
				w.until("cgroup "+d+" removed", func() bool { return os.Remove(d) == nil || !exists(d) })
			}
		}
	}
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// until waits for a condition that no event tells of.
func (w *world) until(what string, met func() bool) {
	w.t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-limit:
			w.t.Fatal("never came true: " + what)
		}
	}
}

func (w *world) version() keeper.VersionInfo {
	w.t.Helper()
	v, err := w.client.Version(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// killKeeper returns when another one answers.
func (w *world) killKeeper() {
	w.t.Helper()
	old := w.version().Pid
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	w.until("another keeper answers", func() bool {
		v, err := w.client.Version(context.Background())
		return err == nil && v.Pid != old
	})
}

func (w *world) spec(id string, args ...string) *specs.Spec {
	caps := []string{"CAP_KILL", "CAP_CHOWN"}
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: filepath.Join(w.dir, "root")},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: w.group + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}},
		},
	}
}

var outputs = keeper.StreamSet{Stdout: true, Stderr: true}

func (w *world) run(id string, streams keeper.StreamSet, args ...string) keeper.Pipes {
	w.t.Helper()
	s := w.spec(id, args...)
	s.Process.Terminal = streams.TTY
	_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: id, Spec: s, Streams: streams})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.client.Start(context.Background(), id); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) exit() keeper.Exit {
	w.t.Helper()
	select {
	case e := <-w.client.Exits():
		return e
	case <-time.After(20 * time.Second):
		w.t.Fatal("no exit came")
		panic("unreachable")
	}
}

func TestAContainerRunsItsProgramAndItsExitIsTold(t *testing.T) {
	w := newWorld(t)
	p := w.run("c1", outputs, "sh", "-c", "echo out; echo err >&2; exit 7")
	out, _ := io.ReadAll(p.Stdout)
	errs, _ := io.ReadAll(p.Stderr)
	e := w.exit()
	if string(out) != "out\n" || string(errs) != "err\n" || e.Code != 7 || e.ID != "c1" {
		t.Fatalf("stdout %q, stderr %q, exit %+v", out, errs, e)
	}
	if err := w.client.Delete(context.Background(), keeper.Ref{ID: "c1"}); err != nil {
		t.Fatal(err)
	}
}

func TestSeccompIsInForce(t *testing.T) {
	w := newWorld(t)
	p := w.run("c1", outputs, "busybox", "mkdir", "/tmp/x")
	errs, _ := io.ReadAll(p.Stderr)
	if e := w.exit(); e.Code == 0 || !strings.Contains(string(errs), "not permitted") {
		t.Fatalf("mkdir was not refused: exit %d, %q", e.Code, errs)
	}
}

func TestATerminalCarriesInputAndOutput(t *testing.T) {
	w := newWorld(t)
	p := w.run("c1", keeper.StreamSet{TTY: true}, "sh", "-c", "read x; echo got $x; tty")
	if err := w.client.Resize(context.Background(), keeper.Ref{ID: "c1"}, 30, 90); err != nil {
		t.Fatal(err)
	}
	if _, err := p.TTY.WriteString("word\n"); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(p.TTY) // ends with EIO
	if !strings.Contains(string(out), "got word") || !strings.Contains(string(out), "/dev/") {
		t.Fatalf("%q", out)
	}
	w.exit()
}

func TestAMissingProgramIsToldAndNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	_, _, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: "c1", Spec: w.spec("c1", "nonsuch"), Streams: outputs})
	if err == nil || !strings.Contains(err.Error(), `exec: "nonsuch": executable file not found in $PATH`) {
		t.Fatalf("%v", err)
	}
	all, err := w.client.List(context.Background())
	if err != nil || len(all) != 0 {
		t.Fatalf("%v %v", all, err)
	}
}

func TestExecRunsBesideTheFirstProcess(t *testing.T) {
	w := newWorld(t)
	w.run("c1", outputs, "sleep", "1000")
	s := w.spec("c1", "sh", "-c", "cat; exit 3").Process
	_, p, err := w.client.Exec(context.Background(), keeper.ExecRequest{Ref: keeper.Ref{ID: "c1", Exec: "e1"}, Process: s, Streams: keeper.StreamSet{Stdin: true, Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdin.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := w.client.CloseStdin(context.Background(), keeper.Ref{ID: "c1", Exec: "e1"}); err != nil {
		t.Fatal(err)
	}
	_ = p.Stdin.Close()
	out, _ := io.ReadAll(p.Stdout)
	if e := w.exit(); string(out) != "hello" || e.Code != 3 || e.Exec != "e1" {
		t.Fatalf("%q %+v", out, e)
	}
}

func TestAnExitIsToldAgainUntilItIsAcknowledged(t *testing.T) {
	w := newWorld(t)
	w.run("c1", outputs, "sh", "-c", "exit 5")
	w.exit()
	if err := w.client.Close(); err != nil {
		t.Fatal(err)
	}
	w.connect()
	if e := w.exit(); e.Code != 5 {
		t.Fatalf("%+v", e)
	}
	if err := w.client.Ack(context.Background(), keeper.Ref{ID: "c1"}); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Close(); err != nil {
		t.Fatal(err)
	}
	w.connect()
	w.run("c2", outputs, "true")
	if e := w.exit(); e.ID != "c2" {
		t.Fatalf("%+v", e)
	}
}

func TestANewKeeperAdoptsWhatADeadOneLeft(t *testing.T) {
	w := newWorld(t)
	pipes := w.run("c1", keeper.StreamSet{Stdin: true, Stdout: true}, "sh", "-c", "read x; echo got $x; exit 9")
	w.killKeeper()
	if _, err := pipes.Stdin.WriteString("word\n"); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 9)
	if _, err := io.ReadFull(pipes.Stdout, out); err != nil || !bytes.Equal(out, []byte("got word\n")) {
		t.Fatalf("%q %v", out, err)
	}
	if e := w.exit(); e.Code != 9 && !e.Unknown {
		t.Fatalf("%+v", e)
	}
	again, err := w.client.Pipes(context.Background(), keeper.Ref{ID: "c1"})
	if err != nil || again.Stdin == nil || again.Stdout == nil {
		t.Fatalf("%+v %v", again, err)
	}
	again.Close()
}

func TestOutputOutlivesKeeperAndDaemonAtOnce(t *testing.T) {
	w := newWorld(t)
	// A child alone has the pipe: the first process has sent its own output elsewhere.
	pipes := w.run("c1", outputs, "sh", "-c", "(n=0; while [ $n -lt 5000 ]; do n=$((n+1)); echo $n; done; exec sleep 1000) & exec sleep 1000 >/dev/null 2>&1")
	text := make([]byte, 8<<10)
	if _, err := io.ReadFull(pipes.Stdout, text); err != nil {
		t.Fatal(err)
	}
	all := 9*2 + 90*3 + 900*4 + 4001*5
	w.until("all is written", func() bool {
		n, err := unread(pipes.Stdout)
		return err == nil && n == all-len(text)
	})
	old := w.version().Pid
	_ = w.client.Close()
	pipes.Close()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.until("the keeper is gone", func() bool { return syscall.Kill(old, 0) != nil })
	w.connect()
	again, err := w.client.Pipes(context.Background(), keeper.Ref{ID: "c1"})
	if err != nil || again.Stdout == nil || again.Stderr == nil {
		t.Fatalf("%+v %v", again, err)
	}
	defer again.Close()
	more := make([]byte, all-len(text))
	if _, err := io.ReadFull(again.Stdout, more); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text)+string(more), "\n")
	for i, l := range lines[:len(lines)-1] {
		if l != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}
}

// unread tells how many bytes wait in a pipe.
func unread(f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if failed := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); failed != nil {
		return 0, failed
	}
	return n, err
}

func TestATerminalSurvivesTwoKeepers(t *testing.T) {
	w := newWorld(t)
	p := w.run("c1", keeper.StreamSet{TTY: true}, "sh", "-c", "stty -echo 2>/dev/null; while read x; do echo got $x; done")
	for _, word := range []string{"one", "two", "three"} {
		if _, err := p.TTY.WriteString(word + "\n"); err != nil {
			t.Fatal(err)
		}
		var seen []byte
		for !bytes.Contains(seen, []byte("got "+word)) {
			b := make([]byte, 256)
			n, err := p.TTY.Read(b)
			if err != nil {
				t.Fatalf("%v after %q", err, seen)
			}
			seen = append(seen, b[:n]...)
		}
		w.killKeeper()
		if err := w.client.Resize(context.Background(), keeper.Ref{ID: "c1"}, 11, 22); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnExitWhileNoKeeperLivesIsTold(t *testing.T) {
	w := newWorld(t)
	w.run("c1", outputs, "sleep", "1000")
	all, err := w.client.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// The keeper is stopped first, so that it cannot see its child's end.
	pid := w.version().Pid
	for _, step := range []struct {
		pid int
		sig syscall.Signal
	}{{pid, syscall.SIGSTOP}, {all[0].Pid, syscall.SIGKILL}, {pid, syscall.SIGKILL}} {
		if err := syscall.Kill(step.pid, step.sig); err != nil {
			t.Fatal(err)
		}
	}
	if e := w.exit(); e.ID != "c1" || e.Code != 137 {
		t.Fatalf("%+v", e)
	}
}

func TestAKeeperThatListensNoMoreHoldsUpNobody(t *testing.T) {
	w := newWorld(t)
	deaf, err := net.Dial("unix", filepath.Join(w.dir, "keeper/keeper.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	wire := keeper.NewWire(deaf.(*net.UnixConn))
	if err := wire.Send(keeper.Frame{Seq: 1, Op: "subscribe"}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		id := fmt.Sprint("c", i)
		w.run(id, outputs, "true").Close()
		if e := w.exit(); e.ID != id {
			t.Fatalf("%+v", e)
		}
	}
}

func TestExitsArriveThoughTheirReaderCallsBetween(t *testing.T) {
	w := newWorld(t)
	w.run("c1", outputs, "sleep", "1000")
	const n = 24
	for i := range n {
		_, p, err := w.client.Exec(context.Background(), keeper.ExecRequest{Ref: keeper.Ref{ID: "c1", Exec: fmt.Sprint("e", i)}, Process: w.spec("c1", "true").Process, Streams: outputs})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	for range n {
		e := w.exit()
		if err := w.client.Ack(context.Background(), e.Ref); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Delete(context.Background(), e.Ref); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOrphansOfAContainerInTheHostsPidNamespaceAreReaped(t *testing.T) {
	w := newWorld(t)
	s := w.spec("c1", "sh", "-c", "(true & echo $!); exec sleep 1000")
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: "c1", Spec: s, Streams: outputs})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.Start(context.Background(), "c1"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(p.Stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	w.until("orphan "+line+" reaped", func() bool { return !exists("/proc/" + strings.TrimSpace(line)) })
}

func TestExecInAPausedContainerIsRefused(t *testing.T) {
	w := newWorld(t)
	w.run("c1", outputs, "sleep", "1000")
	if err := w.client.Pause(context.Background(), "c1"); err != nil {
		t.Fatal(err)
	}
	request := keeper.ExecRequest{Ref: keeper.Ref{ID: "c1", Exec: "e1"}, Process: w.spec("c1", "true").Process, Streams: outputs}
	if _, _, err := w.client.Exec(context.Background(), request); !errors.Is(err, fault.ErrConflict) {
		t.Fatal(err)
	}
	if err := w.client.Resume(context.Background(), "c1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.client.Exec(context.Background(), request); err != nil {
		t.Fatal(err)
	}
}

func TestAContainerThatStopsWhoJoinsItHoldsUpNobodyElse(t *testing.T) {
	for _, way := range []string{"plan", "libcontainer"} {
		t.Run(way, func(t *testing.T) {
			t.Setenv("BERTH_KEEPER_STEPS", way)
			stopWhoJoins(t)
		})
	}
}

func stopWhoJoins(t *testing.T) {
	w := newWorld(t)
	w.run("evil", keeper.StreamSet{}, "sh", "-c", "while :; do for d in /proc/[0-9]*; do p=${d#/proc/}; [ $p = 1 ] || kill -STOP $p; done; done")
	w.run("good", keeper.StreamSet{}, "sleep", "1000")
	ctx := context.Background()
	join := func(id, exec string) error {
		process := w.spec(id, "true").Process
		process.Env = append(process.Env, "HOME=/")
		_, x, err := w.client.Exec(ctx, keeper.ExecRequest{Ref: keeper.Ref{ID: id, Exec: exec}, Process: process, Streams: outputs})
		x.Close()
		return err
	}
	var all sync.WaitGroup
	defer func() { // they end with their container
		_ = w.client.Delete(ctx, keeper.Ref{ID: "evil"})
		all.Wait()
	}()
	for i := range 30 {
		all.Go(func() { _ = join("evil", fmt.Sprint("e", i)) })
	}
	w.until("a process was stopped on its way into the container", func() bool {
		// Perhaps before it is in the container's cgroup.
		all, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range all {
			if stat, _ := os.ReadFile(path); regexp.MustCompile(`\((exe|runc:\S+)\) T `).Match(stat) {
				return true
			}
		}
		return false
	})
	if err := join("good", "e"); err != nil {
		t.Error(err)
	}
	w.run("further", keeper.StreamSet{}, "sleep", "1000")
	if _, err := w.client.List(ctx); err != nil {
		t.Error(err)
	}
	if err := w.client.Delete(ctx, keeper.Ref{ID: "evil"}); err != nil {
		t.Error(err)
	}
}

func TestRealmsDoNotSeeOneAnother(t *testing.T) {
	w := newWorld(t)
	other, err := keeper.Connect(context.Background(), w.options("other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w.run("c1", outputs, "true")
	if e := w.exit(); e.ID != "c1" {
		t.Fatalf("%+v", e)
	}
	if all, err := other.List(context.Background()); err != nil || len(all) != 0 {
		t.Fatalf("%+v %v", all, err)
	}
	if _, _, err := other.Create(context.Background(), keeper.CreateRequest{ID: "c1", Spec: w.spec("other-c1", "true"), Streams: outputs}); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(context.Background(), "c1"); err != nil {
		t.Fatal(err)
	}
	if e := <-other.Exits(); e.ID != "c1" || e.Code != 0 {
		t.Fatalf("%+v", e)
	}
	if all, err := w.client.List(context.Background()); err != nil || len(all) != 1 || all[0].Exit == nil || all[0].Exit.ID != "c1" {
		t.Fatalf("%+v %v", all, err)
	}
	if err := other.Delete(context.Background(), keeper.Ref{ID: "c1"}); err != nil {
		t.Fatal(err)
	}
}

func TestAFifoCarriesOutputWhileNoKeeperLives(t *testing.T) {
	w := newWorld(t)
	in, out := filepath.Join(w.dir, "in"), filepath.Join(w.dir, "out")
	for _, f := range []string{in, out} {
		if err := syscall.Mkfifo(f, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: "c1", Spec: w.spec("c1", "sh", "-c", "cat; exit 4"), Fifos: keeper.Fifos{Stdin: in, Stdout: out}})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if err := w.client.Start(context.Background(), "c1"); err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, word := range []string{"one", "two"} {
		// Each writer goes again; the process sees no end between them.
		if err := os.WriteFile(in, []byte(word), 0); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(word))
		if _, err := io.ReadFull(reader, b); err != nil || string(b) != word {
			t.Fatalf("%q %v", b, err)
		}
		w.killKeeper()
	}
	if err := w.client.CloseStdin(context.Background(), keeper.Ref{ID: "c1"}); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(reader); err != nil || len(rest) != 0 {
		t.Fatalf("%q %v", rest, err)
	}
	if e := w.exit(); e.Code != 4 && !e.Unknown {
		t.Fatalf("%+v", e)
	}
}

func TestAKeeperLivesInItsOwnSessionAndCgroup(t *testing.T) {
	w := newWorld(t)
	pid := w.version().Pid
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(groups), w.group+"-itself") && !strings.Contains(string(groups), "itself.scope") {
		t.Fatalf("%v: %s", err, groups)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Fatalf("session %d of %d: %v", sid, pid, err)
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(name) != "berth-keeper\n" {
		t.Fatalf("%q %v", name, err)
	}
}

func TestIdsThatLeaveAFolderAreRefused(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"", "..", "../x", "a/b", "a@b", ".hidden", "-x", strings.Repeat("a", 300)} {
		_, _, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: id, Spec: w.spec("x", "true")})
		if !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, exec := range []string{"..", "../../x", "a/b"} {
		w.client.Ack(context.Background(), keeper.Ref{ID: "c", Exec: exec})
		_, _, err := w.client.Exec(context.Background(), keeper.ExecRequest{Ref: keeper.Ref{ID: "c", Exec: exec}, Process: w.spec("x", "true").Process})
		if err == nil {
			t.Errorf("%q was taken", exec)
		}
	}
}

func TestAnAbandonedCreateLeavesNothing(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := w.client.Create(ctx, keeper.CreateRequest{ID: "c1", Spec: w.spec("c1", "true"), Streams: outputs}); err == nil {
		t.Fatal("no error")
	}
	w.until("nothing is left", func() bool {
		all, err := w.client.List(context.Background())
		_, statErr := os.Stat(filepath.Join(w.dir, "keeper/state/c1"))
		return err == nil && len(all) == 0 && statErr != nil
	})
}

func TestManyContainersStartAtOnce(t *testing.T) {
	w := newWorld(t)
	const n = 32
	done := make(chan error, n)
	for i := range n {
		go func() {
			id := fmt.Sprint("c", i)
			_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: id, Spec: w.spec(id, "true"), Streams: outputs})
			if err == nil {
				p.Close()
				err = w.client.Start(context.Background(), id)
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	seen := map[string]bool{}
	for len(seen) < n && !t.Failed() {
		e := w.exit()
		seen[e.ID] = true
		if e.Code != 0 {
			t.Errorf("%+v", e)
		}
	}
}

func BenchmarkCreateStartExitDelete(b *testing.B) {
	w := newWorld(b)
	ctx := context.Background()
	var create, start, exit, remove time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("b", i)
		began := time.Now()
		_, p, err := w.client.Create(ctx, keeper.CreateRequest{ID: id, Spec: w.spec(id, "true"), Streams: outputs})
		if err != nil {
			b.Fatal(err)
		}
		created := time.Now()
		if err := w.client.Start(ctx, id); err != nil {
			b.Fatal(err)
		}
		started := time.Now()
		for e := w.exit(); e.ID != id; e = w.exit() {
		}
		exited := time.Now()
		p.Close()
		if err := w.client.Delete(ctx, keeper.Ref{ID: id}); err != nil {
			b.Fatal(err)
		}
		create, start, exit, remove = create+created.Sub(began), start+started.Sub(created), exit+exited.Sub(started), remove+time.Since(exited)
	}
	for name, d := range map[string]time.Duration{"create": create, "start": start, "exit": exit, "delete": remove} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), "ms/"+name)
	}
}

func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	w.run("c1", outputs, "sleep", "1000")
	for i := 0; b.Loop(); i++ {
		r := keeper.Ref{ID: "c1", Exec: fmt.Sprint("e", i)}
		_, p, err := w.client.Exec(context.Background(), keeper.ExecRequest{Ref: r, Process: w.spec("c1", "true").Process, Streams: outputs})
		if err != nil {
			b.Fatal(err)
		}
		w.exit()
		p.Close()
		if err := w.client.Delete(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}

// An image may have /proc/self/exe as its program, which is the keeper's until
// the program is executed: nobody may write into that file.
func TestNobodyWritesIntoTheKeepersProgram(t *testing.T) {
	w := newWorld(t)
	v, err := w.client.Version(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", v.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	seals, err := unix.FcntlInt(exe.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		t.Fatal("the keeper runs a file that can be reached: ", err)
	}
	if want := unix.F_SEAL_WRITE | unix.F_SEAL_SEAL | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK; seals&want != want {
		t.Errorf("seals of the keeper's program: %#x", seals)
	}
}
