package keeper_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper"
)

// moby gives the profile that Docker's containers have.
func moby(t testing.TB) *specs.LinuxSeccomp {
	t.Helper()
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sleeper starts a container that waits, with a profile.
func (w *world) sleeper(id string, profile *specs.LinuxSeccomp) (pid int) {
	w.t.Helper()
	s := w.spec(id, "sleep", "1000")
	s.Process.Env = append(s.Process.Env, "HOME=/") // without it no plan is made
	s.Linux.Seccomp = profile
	started, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: id, Spec: s, Streams: outputs})
	if err != nil {
		w.t.Fatal(err)
	}
	p.Close()
	if err := w.client.Start(context.Background(), id); err != nil {
		w.t.Fatal(err)
	}
	return started.Pid
}

// compiled waits until the keeper has a filter ready and compiles none.
func (w *world) compiled() {
	w.t.Helper()
	pid := w.version().Pid
	w.until("filter compiled ahead", func() bool {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		ready := slices.ContainsFunc(links, func(l string) bool {
			target, _ := os.Readlink(l)
			return strings.Contains(target, "memfd:seccomp-filter")
		})
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, task := range tasks {
			children, _ := os.ReadFile(task)
			for _, child := range strings.Fields(string(children)) {
				line, _ := os.ReadFile("/proc/" + child + "/cmdline")
				ready = ready && !strings.Contains(string(line), "compile-filter")
			}
		}
		return ready
	})
}

// loaded reads the filter of a process out of the kernel, once it is a
// container's program: while a process of several threads becomes that, the
// thread of its number is gone for a moment.
func (w *world) loaded(pid int) []unix.SockFilter {
	t := w.t
	t.Helper()
	w.until("the program runs", func() bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && string(name) == "sleep\n"
	})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	program := make([]unix.SockFilter, 4096)
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), 0, uintptr(unsafe.Pointer(&program[0])), 0, 0)
	if errno != 0 {
		t.Skipf("skipped: the kernel does not show filters: %v", errno)
	}
	return program[:n]
}

// The stub that libcontainer puts before a filter lists architectures in no
// fixed order; it is shorter than this.
const stub = 40

func TestAFilterCompiledAheadIsTheOneThatIsLoadedAnyhow(t *testing.T) {
	t.Setenv("BERTH_KEEPER_STEPS", "libcontainer")
	plain := newWorld(t)
	first := plain.loaded(plain.sleeper("c1", moby(t)))
	if len(first) < 500 {
		t.Fatalf("the filter has %d instructions only", len(first))
	}
	t.Setenv("BERTH_KEEPER_STEPS", "")
	w := newWorld(t)
	s := w.spec("tty", "sleep", "1000")
	s.Linux.Seccomp, s.Process.Terminal = moby(t), true
	started, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: "tty", Spec: s, Streams: keeper.StreamSet{TTY: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := w.client.Start(context.Background(), "tty"); err != nil {
		t.Fatal(err)
	}
	for how, pid := range map[string]int{"by a plan": w.sleeper("c1", moby(t)), "by libcontainer, with a terminal": started.Pid} {
		got := w.loaded(pid)
		if d := cmp.Diff(first[stub:], got[stub:]); d != "" || len(first) != len(got) {
			t.Errorf("%s: %d and %d instructions: %s", how, len(first), len(got), d)
		}
	}
}

func TestAFilterCompiledAheadIsNotGivenToAnotherProfile(t *testing.T) {
	w := newWorld(t)
	strict := moby(t)
	for i := range strict.Syscalls {
		strict.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(strict.Syscalls[i].Names), func(n string) bool { return strings.HasPrefix(n, "mkdir") })
	}
	w.sleeper("moby", moby(t))
	w.compiled()
	w.sleeper("strict", strict)
	w.compiled()
	for round := range 2 {
		for name, want := range map[string]string{"moby": "", "strict": "not permitted"} {
			s := w.spec("c", "busybox", "mkdir", fmt.Sprintf("/tmp/%s%d", name, round))
			s.Linux.Seccomp = map[string]*specs.LinuxSeccomp{"moby": moby(t), "strict": strict}[name]
			_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: "c", Spec: s, Streams: outputs})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.client.Start(context.Background(), "c"); err != nil {
				t.Fatal(err)
			}
			if errs, _ := io.ReadAll(p.Stderr); (want == "") != (len(errs) == 0) || !strings.Contains(string(errs), want) {
				t.Errorf("%s: %q", name, errs)
			}
			w.exit()
			if err := w.client.Delete(context.Background(), keeper.Ref{ID: "c"}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestNoProcessInheritsAFilter(t *testing.T) {
	w := newWorld(t)
	w.sleeper("c1", moby(t))
	w.compiled()
	s := w.spec("c2", "sh", "-c", "busybox ls -l /proc/self/fd/ | busybox grep -c seccomp; busybox grep ^Seccomp: /proc/self/status; busybox sleep 1000")
	s.Linux.Seccomp = moby(t)
	_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: "c2", Spec: s, Streams: outputs})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.Start(context.Background(), "c2"); err != nil {
		t.Fatal(err)
	}
	want := "0\nSeccomp:\t2\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(p.Stdout, got); err != nil || string(got) != want {
		t.Fatalf("%q %v", got, err)
	}
	e := w.spec("c2", "sh", "-c", "busybox ls -l /proc/self/fd/ | busybox grep -c seccomp; busybox grep ^Seccomp: /proc/self/status").Process
	_, p, err = w.client.Exec(context.Background(), keeper.ExecRequest{Ref: keeper.Ref{ID: "c2", Exec: "e1"}, Process: e, Streams: outputs})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := io.ReadAll(p.Stdout); string(out) != want {
		t.Fatalf("%q", out)
	}
}

func BenchmarkCreateStartExitDeleteWithMobysProfile(b *testing.B) {
	w := newWorld(b)
	profile := moby(b)
	w.sleeper("warm", profile)
	w.compiled()
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("b", i)
		s := w.spec(id, "true")
		s.Linux.Seccomp = profile
		_, p, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: id, Spec: s, Streams: outputs})
		if err != nil {
			b.Fatal(err)
		}
		if err := w.client.Start(context.Background(), id); err != nil {
			b.Fatal(err)
		}
		w.exit()
		p.Close()
		if err := w.client.Delete(context.Background(), keeper.Ref{ID: id}); err != nil {
			b.Fatal(err)
		}
	}
}
