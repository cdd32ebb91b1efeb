// Package kit gives the black-box tests an engine to talk to: namespaces of
// their own, test images, a census of what an engine leaves on its host. It
// knows engines only by their command lines and sockets, never by import.
package kit

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The stages of a test binary: outside starts an init in new namespaces, init
// prepares them and reaps, inside runs the tests.
const (
	stageVar   = "BERTH_TEST_STAGE"
	rootVar    = "BERTH_TEST_ROOT"
	stageInit  = "init"
	stageInner = "inside"
)

// Variables that fit the tests to an unusual world.
const (
	// patienceVar is by how much longer every wait may be, as a whole number: on emulated processors.
	patienceVar = "BERTH_TEST_PATIENCE"
	// socketVar is the unix socket of a running engine that is to be tested, in
	// the place of one that the tests start in namespaces of their own.
	socketVar = "BERTH_TEST_SOCKET"
)

// Stretch lengthens a limit for a slow machine.
func Stretch(limit time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv(patienceVar)); err == nil && n > 1 {
		return limit * time.Duration(n)
	}
	return limit
}

// Slow says that the processor is an emulated one: numbers that only make a
// test harder may be smaller.
func Slow() bool { return Stretch(1) > 1 }

// PeerVar selects Debian's dockerd instead of berthd when set to 1.
const PeerVar = "BERTH_TEST_PEER"

// Peer says whether the run measures the peer engine.
func Peer() bool { return os.Getenv(PeerVar) == "1" }

// Main runs the tests of a package inside mount, network and process
// namespaces of their own and returns the exit code for os.Exit.
func Main(m *testing.M) int {
	flag.Parse()
	// Scripts mostly wait for the engine; four at once keep two cores busy.
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", "4")
	}
	return Enter(func() int { return Count(m) })
}

// Count runs the tests of a package where they are, and tells at the end what was skipped.
func Count(m *testing.M) int {
	code := m.Run()
	summary()
	return code
}

// Command is the main of a program that starts engines; it says how it failed.
func Command(name string, run func() error) {
	os.Exit(Enter(func() int {
		if err := run(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			return 1
		}
		return 0
	}))
}

// Enter runs fn inside namespaces of its own and returns its exit code.
func Enter(fn func() int) int {
	switch os.Getenv(stageVar) {
	case stageInner:
		return fn()
	case stageInit:
		return runInit()
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "skipped: engines need root, and this is not root")
		return 0
	}
	root, err := os.MkdirTemp("", "berth-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(root)
	if os.Getenv(socketVar) != "" {
		// A daemon that is not ours is where it is.
		if err := os.Setenv(rootVar, root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return fn()
	}
	cmd := again(stageInit)
	cmd.Env = append(cmd.Env, rootVar+"="+root)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	return exitCode(cmd.Run())
}

// Root is the folder of this run; it is removed when the run ends.
func Root() string { return os.Getenv(rootVar) }

func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageVar+"="+stage)
	return cmd
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "test world:", err)
	return 1
}

func runInit() int {
	if err := prepare(Root()); err != nil {
		fmt.Fprintln(os.Stderr, "prepare namespaces:", err)
		return 1
	}
	cmd := again(stageInner)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signal.Ignore(syscall.SIGPIPE)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 1
		}
		if pid == cmd.Process.Pid {
			if status.Exited() {
				return status.ExitStatus()
			}
			return 128 + int(status.Signal())
		}
	}
}

// prepare makes /proc, /sys and /run those of the new namespaces. The trees of
// cgroups and of security modules are kept: they have no namespace here.
func prepare(root string) error {
	kept, security := filepath.Join(root, "cgroup"), filepath.Join(root, "security")
	for _, dir := range []string{kept, security} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	steps := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"/sys/fs/cgroup", kept, "", unix.MS_BIND | unix.MS_REC},
		{"/sys/kernel/security", security, "", unix.MS_BIND | unix.MS_REC},
		{"sysfs", "/sys", "sysfs", 0},
		{kept, "/sys/fs/cgroup", "", unix.MS_BIND | unix.MS_REC},
		{security, "/sys/kernel/security", "", unix.MS_BIND | unix.MS_REC},
		{"tmpfs", "/run", "tmpfs", 0},
	}
	for _, s := range steps {
		if _, err := os.Stat("/sys/kernel/security"); err != nil && (s.source == security || s.target == security) {
			continue // a kernel without security modules
		}
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", s.target, err)
		}
	}
	for _, dir := range []string{kept, security} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("raise lo: %w: %s", err, out)
	}
	return nil
}

// skips counts what was skipped, by reason.
var skips = struct {
	mu    sync.Mutex
	count map[string]int
}{count: map[string]int{}}

// CountSkip records one skipped case for the line at the end of the run.
func CountSkip(reason string) {
	skips.mu.Lock()
	defer skips.mu.Unlock()
	skips.count[reason]++
}

// Skip ends a test that lacks something and counts it.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	CountSkip(reason)
	t.Skip(reason)
}

// Need skips a test when a program is not installed.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Skip(t, "%s is not installed", p)
		}
	}
}

func summary() {
	skips.mu.Lock()
	defer skips.mu.Unlock()
	if len(skips.count) == 0 {
		return
	}
	total, parts := 0, []string{}
	for reason, n := range skips.count {
		total += n
		parts = append(parts, fmt.Sprintf("%s (%d)", strings.TrimSpace(reason), n))
	}
	sort.Strings(parts)
	fmt.Printf("skipped %d: %s\n", total, strings.Join(parts, "; "))
}

// Tool is the path of a foreign program that `make test-tools` built; without
// it the test skips.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "tools", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		Skip(t, "%s is not built (make test-tools)", name)
	}
	return path
}

// SmallDisk gives the engine that a test starts under its own name a data root
// that is a file system of 1 GiB, which the test may fill up.
func SmallDisk(t testing.TB) string {
	t.Helper()
	root := filepath.Join(Root(), t.Name(), "data")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}
