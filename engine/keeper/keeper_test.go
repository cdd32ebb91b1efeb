package keeper_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/keeper"
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
	w.connect(nil)
	t.Cleanup(w.close)
	return w
}

func (w *world) connect(held func() []keeper.Adoption) {
	w.t.Helper()
	c, err := keeper.Connect(context.Background(), keeper.Options{Dir: filepath.Join(w.dir, "keeper"), Binary: binary}, held)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(w.dir, "keeper/keeper.log"))
		w.t.Fatalf("%v\n%s", err, log)
	}
	w.client = c
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
			CgroupsPath: "/" + filepath.Base(w.dir) + "-keeper-test/" + id,
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
	w.connect(nil)
	if e := w.exit(); e.Code != 5 {
		t.Fatalf("%+v", e)
	}
	if err := w.client.Ack(context.Background(), keeper.Ref{ID: "c1"}); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Close(); err != nil {
		t.Fatal(err)
	}
	w.connect(nil)
	w.run("c2", outputs, "true")
	if e := w.exit(); e.ID != "c2" {
		t.Fatalf("%+v", e)
	}
}

func TestANewKeeperAdoptsWhatADeadOneLeft(t *testing.T) {
	w := newWorld(t)
	_ = w.client.Close()
	var pipes keeper.Pipes
	w.connect(func() []keeper.Adoption { return []keeper.Adoption{{Ref: keeper.Ref{ID: "c1"}, Pipes: pipes}} })
	pipes = w.run("c1", keeper.StreamSet{Stdin: true, Stdout: true}, "sh", "-c", "read x; echo got $x; exit 9")
	v, err := w.client.Version(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(v.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var now keeper.VersionInfo
	for now.Pid == 0 || now.Pid == v.Pid {
		now, _ = w.client.Version(context.Background())
	}
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
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("b", i)
		p := w.run(id, outputs, "true")
		for e := w.exit(); e.ID != id; e = w.exit() {
		}
		p.Close()
		if err := w.client.Delete(context.Background(), keeper.Ref{ID: id}); err != nil {
			b.Fatal(err)
		}
	}
}
