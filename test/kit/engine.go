package kit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Limits of what an engine may take to start and to stop.
const (
	startLimit = 30 * time.Second
	stopLimit  = 60 * time.Second
)

// ErrMissing says that the engine to test is not there; callers skip.
var ErrMissing = errors.New("missing")

// Engine is one running engine under test.
type Engine struct {
	Dir    string // temporary folder of this engine
	Socket string // path of the API's unix socket
	API    *API
	IsPeer bool
	// IsRunning says that the engine ran before and goes on: the tests neither
	// start, stop nor kill it, and know nothing of its folders.
	IsRunning bool

	base  Census // what was there when the engine first answered
	args  []string
	files []*os.File
	cmd   *exec.Cmd
	done  chan error
	log   *os.File
}

// Start starts an engine in a folder of its own: berthd, or the peer.
func Start(ctx context.Context, name string, peer bool, extra ...string) (*Engine, error) {
	return StartWith(ctx, name, peer, nil, extra...)
}

// StartWith also hands open files to the daemon, as socket activation does:
// its descriptors 3, 4, …
func StartWith(ctx context.Context, name string, peer bool, files []*os.File, extra ...string) (*Engine, error) {
	dir := filepath.Join(Root(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	e := &Engine{Dir: dir, Socket: filepath.Join(dir, "api.sock"), IsPeer: peer, files: files}
	if running := os.Getenv(socketVar); running != "" {
		e.Socket, e.IsRunning = running, true
		e.API = NewAPI(e.Socket)
		return e, Until(startLimit, func() error { return e.Ping(ctx) })
	}
	e.API = NewAPI(e.Socket)
	program, err := program(peer)
	if err != nil {
		return nil, err
	}
	e.args = append([]string{program,
		"-H", "unix://" + e.Socket, "--data-root", e.DataRoot(), "--exec-root", e.ExecRoot(),
		"--pidfile", filepath.Join(dir, "pid")}, extra...)
	if peer {
		config := filepath.Join(dir, "daemon.json")
		if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
			return nil, err
		}
		e.args = append(e.args, "--config-file", config, "--cgroup-parent", "/"+e.cgroup())
	}
	e.log, err = os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	if err := e.Restart(ctx); err != nil {
		return nil, err
	}
	e.base, err = e.Take()
	return e, err
}

// DataRoot is where the engine keeps what lasts.
func (e *Engine) DataRoot() string { return filepath.Join(e.Dir, "data") }

// ExecRoot is where the engine keeps what a reboot may lose.
func (e *Engine) ExecRoot() string { return filepath.Join(e.Dir, "exec") }

// Pid is the daemon's process.
func (e *Engine) Pid() int { return e.cmd.Process.Pid }

// cgroup is the folder below each controller that holds the containers.
func (e *Engine) cgroup() string {
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(e.ExecRoot())))
	return "berth-" + sum[:6]
}

// program finds or builds the engine.
func program(peer bool) (string, error) {
	if peer {
		path, err := exec.LookPath("dockerd")
		if err != nil {
			return "", fmt.Errorf("%w: dockerd (package docker.io) is not installed", ErrMissing)
		}
		return path, nil
	}
	if dir := os.Getenv("BERTH_TEST_BIN"); dir != "" {
		return filepath.Join(dir, "berthd"), nil
	}
	_, self, _, _ := runtime.Caller(0)
	tree := filepath.Join(filepath.Dir(self), "..", "..")
	bin := filepath.Join(Root(), "bin")
	if _, err := os.Stat(filepath.Join(bin, "berthd")); err == nil {
		return filepath.Join(bin, "berthd"), nil
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for name, how := range map[string][2]string{"berthd": {"0", ""}, "berth-keeper": {"1", "seccomp"}} {
		if _, err := os.Stat(filepath.Join(tree, "cmd", name)); err != nil {
			return "", fmt.Errorf("%w: cmd/%s is not in this tree", ErrMissing, name)
		}
		cmd := exec.Command("go", "build", "-tags", how[1], "-o", filepath.Join(bin, name), "./cmd/"+name)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+how[0])
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	// Of the linked containerd's release, as the Makefile installs it.
	cmd := exec.Command("go", "build", "-o", filepath.Join(bin, "containerd-shim-runc-v2"), "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
	cmd.Dir, cmd.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the shim: %w: %s", err, out)
	}
	return filepath.Join(bin, "berthd"), nil
}

// Restart starts the daemon again over the same roots and waits for its API.
// What env says is added to its environment.
func (e *Engine) Restart(ctx context.Context, env ...string) error {
	e.cmd = exec.Command(e.args[0], e.args[1:]...)
	e.cmd.Env = append(os.Environ(), env...)
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	e.cmd.ExtraFiles = e.files
	// No terminal signal may reach the daemon before the tests end it.
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := e.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", e.args[0], err)
	}
	e.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(e.cmd, e.done)
	err := Until(startLimit, func() error {
		select {
		case err := <-e.done:
			e.done <- err
			return nil
		default:
		}
		return e.Ping(ctx)
	})
	if err == nil {
		err = e.Ping(ctx)
	}
	if err != nil {
		_ = e.cmd.Process.Kill()
		return fmt.Errorf("engine did not answer: %w\n%s", err, e.Log())
	}
	return nil
}

// Ping asks the engine whether it is there.
func (e *Engine) Ping(ctx context.Context) error {
	resp, err := e.API.Do(ctx, http.MethodGet, "//_ping", "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping: %s", resp.Status)
	}
	return nil
}

// Kill ends the daemon at once, as a crash would.
func (e *Engine) Kill() {
	_ = e.cmd.Process.Kill()
	<-e.done
}

// Dump ends a daemon that hangs; it writes what its goroutines wait for to its log.
func (e *Engine) Dump() {
	_ = e.cmd.Process.Signal(syscall.SIGQUIT)
	err := <-e.done
	e.done <- err
}

// Stop ends the daemon politely.
func (e *Engine) Stop() error {
	e.API.Close()
	if e.IsRunning {
		return nil
	}
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-e.done:
		return nil
	case <-time.After(Stretch(stopLimit)):
		e.Kill()
		return fmt.Errorf("engine did not stop in %v\n%s", stopLimit, e.Log())
	}
}

// Log is the tail of what the daemon wrote.
func (e *Engine) Log() string {
	if e.log == nil {
		return ""
	}
	b, err := os.ReadFile(e.log.Name())
	if err != nil {
		return err.Error()
	}
	const tail = 8 << 10
	if len(b) > tail {
		b = b[len(b)-tail:]
	}
	return string(bytes.TrimSpace(b))
}

// Env is the environment that points a docker client at the engine.
func (e *Engine) Env() []string { return append(os.Environ(), "DOCKER_HOST=unix://"+e.Socket) }

// LoadImages gives the engine busybox:test and true:test.
func (e *Engine) LoadImages(ctx context.Context) error {
	if err := e.LoadBusybox(ctx); err != nil {
		return err
	}
	nothing, err := TrueFiles(Root())
	if err != nil {
		return err
	}
	return e.API.Load(ctx, "true:test", Config{Cmd: []string{"/true"}}, nothing)
}

// LoadBusybox gives the engine busybox:test.
func (e *Engine) LoadBusybox(ctx context.Context) error {
	files, err := BusyboxFiles()
	if err != nil {
		return err
	}
	return e.API.Load(ctx, "busybox:test", Config{Cmd: []string{"sh"}, Env: []string{SearchPath}}, files)
}

// Docker runs the docker client and returns what it printed on stdout.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = e.Env()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("docker %v: %w: %s", args, err, stderr.Bytes())
	}
	return string(bytes.TrimRight(out, "\n")), nil
}

func goarch() string { return runtime.GOARCH }
