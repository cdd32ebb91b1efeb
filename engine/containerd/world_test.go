package containerd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/engine/containerd"
)

// world is one engine for all tests of this package: a process boots one.
var world struct {
	engine *containerd.Engine
	events event.Bus
	dir    string
}

// TestMain runs the tests again in a mount namespace of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: containerd needs root")
		return
	}
	if os.Getenv("BERTH_TEST_NAMESPACE") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "BERTH_TEST_NAMESPACE=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Println(err)
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-images-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	world.dir = dir
	hosts := filepath.Join(dir, "hosts")
	err = os.WriteFile(hosts, []byte("127.0.0.1 localhost secure.test\n"), 0o644)
	if err == nil {
		err = unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, "")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if world.engine, err = boot(dir); err != nil {
		fmt.Println(err)
		return 1
	}
	defer world.engine.Close()
	return m.Run()
}

func boot(dir string) (*containerd.Engine, error) {
	return containerd.Boot(context.Background(), containerd.Options{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "containerd.sock"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// library gives a library over the engine of all tests, emptied at the end.
func library(t *testing.T, o ...func(*containerd.LibraryOptions)) *containerd.Library {
	t.Helper()
	options := containerd.LibraryOptions{Engine: world.engine, Events: &world.events}
	for _, f := range o {
		f(&options)
	}
	l, err := containerd.NewLibrary(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		list, err := l.List(ctx, image.ListOptions{All: true})
		if err != nil {
			t.Error(err)
		}
		for _, i := range list {
			if _, err := l.Remove(ctx, i.ID, true, true, nil); err != nil {
				t.Error(err)
			}
		}
		l.Close()
	})
	return l
}

// entry is one file of a layer.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func layer(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.body)), Linkname: e.link, Typeflag: e.kind, ModTime: time.Unix(1700000000, 0)}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// archive writes what `docker save` of 20.10 writes.
func archive(t *testing.T, tags []string, config map[string]any, layers ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, body []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	var names, ids []string
	for _, l := range layers {
		sum := fmt.Sprintf("%x", sha256.Sum256(l))
		put(sum+"/layer.tar", l)
		names, ids = append(names, sum+"/layer.tar"), append(ids, "sha256:"+sum)
	}
	doc := map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	}
	body, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%x.json", sha256.Sum256(body))
	put(name, body)
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": tags, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	put("manifest.json", manifest)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// load gives the library an image of layers and returns its id.
func load(t *testing.T, l *containerd.Library, tag string, config map[string]any, layers ...[]byte) string {
	t.Helper()
	var tags []string
	if tag != "" {
		tags = []string{tag}
	}
	said := ""
	err := l.Load(t.Context(), bytes.NewReader(archive(t, tags, config, layers...)), true, nil, func(p image.Progress) { said += p.Stream })
	if err != nil {
		t.Fatal(err)
	}
	ref := tag
	if ref == "" {
		ref = strings.TrimSpace(strings.TrimPrefix(said, "Loaded image ID: "))
	}
	i, err := l.Get(t.Context(), ref, "", false)
	if err != nil {
		t.Fatal(err, said)
	}
	return i.ID
}

// registry starts docker-registry and gives its address.
func registry(t *testing.T, extra string) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := s.Addr().String()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %s}\n%s", filepath.Join(dir, "data"), address, extra)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	until(t, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return address
}

// until waits for a condition.
func until(t *testing.T, try func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(15 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// words collects what a pull or push says, without counters.
type words []string

func (w *words) report(p image.Progress) {
	text := p.Status
	if p.ID != "" {
		text = p.ID + ": " + text
	}
	if p.Stream != "" {
		text = strings.TrimSpace(p.Stream)
	}
	if p.Aux == nil && (len(*w) == 0 || (*w)[len(*w)-1] != text) {
		*w = append(*w, text)
	}
}

func (w words) has(part string) bool { return strings.Contains(strings.Join(w, "\n"), part) }

// content reads a file of an image through a container's root.
func content(t *testing.T, l *containerd.Library, imageID, name string) string {
	t.Helper()
	r, err := containerd.NewRootFS(l, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id := container.ID(fmt.Sprintf("%x", sha256.Sum256([]byte(t.Name()+imageID+name))))
	if err := r.Prepare(t.Context(), id, imageID, nil); err != nil {
		t.Fatal(err)
	}
	path, err := r.Mount(t.Context(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(path, name))
	if err := r.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
