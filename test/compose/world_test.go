// Package compose runs applications on the real daemon, by its native API and
// by the clients that people have.
package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// One engine serves all tests that do not kill it; each has an application of its own.
var shared struct {
	sync.Mutex
	engine *kit.Engine
	err    error
}

func engine(t *testing.T) *world {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.engine == nil && shared.err == nil {
		shared.engine, shared.err = launch("shared")
	}
	return newWorld(t, shared.engine, shared.err)
}

// own gives a test an engine that it may kill.
func own(t *testing.T) *world {
	t.Helper()
	e, err := launch(t.Name())
	if err == nil {
		t.Cleanup(func() { _ = e.Stop() })
	}
	return newWorld(t, e, err)
}

func launch(name string) (*kit.Engine, error) {
	ctx := context.Background()
	e, err := kit.Start(ctx, name, false)
	if err != nil {
		return nil, err
	}
	return e, e.LoadImages(ctx)
}

// world is one test's view of an engine.
type world struct {
	t    *testing.T
	e    *kit.Engine
	c    *remote.Client
	dir  string
	name string // of the test's application
}

func newWorld(t *testing.T, e *kit.Engine, err error) *world {
	t.Helper()
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, e: e, dir: t.TempDir(), name: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	w.c = remote.New(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.Log())
		}
		_, _ = w.c.Down(context.Background(), w.name, app.DownRequest{Volumes: true, RemoveOrphans: true, Forget: true, Timeout: new(int)}, nil)
		w.c.Close()
	})
	return w
}

// document reads a file as its text says.
func (w *world) document(text string) app.Document {
	w.t.Helper()
	path := filepath.Join(w.dir, "compose.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	o, err := cli.NewProjectOptions([]string{path}, cli.WithName(w.name), cli.WithEnv([]string{"WORD=secret"}), cli.WithResolvedPaths(true))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := o.LoadProject(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := app.NewDocument(&app.App{Project: p.WithoutUnnecessaryResources()})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// up applies a file; it gives the lines that told of it.
func (w *world) up(text string, p app.Policy) ([]app.Progress, app.Result, error) {
	w.t.Helper()
	var lines []app.Progress
	r, err := w.c.Apply(context.Background(), app.ApplyRequest{Document: w.document(text), Policy: p}, func(l app.Progress) error {
		lines = append(lines, l)
		return nil
	})
	return lines, r, err
}

func (w *world) mustUp(text string, p app.Policy) app.Result {
	w.t.Helper()
	lines, r, err := w.up(text, p)
	if err != nil {
		w.t.Fatalf("up: %v\n%s", err, show(lines))
	}
	return r
}

// plan gives what an up would do, as ids of steps.
func (w *world) plan(text string, p app.Policy) []string {
	w.t.Helper()
	plan, err := w.c.Plan(context.Background(), app.ApplyRequest{Document: w.document(text), Policy: p})
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for _, s := range plan.Steps {
		ids = append(ids, s.ID)
	}
	return ids
}

func show(lines []app.Progress) string {
	var b strings.Builder
	for _, l := range lines {
		text, _ := json.Marshal(l)
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String()
}

// containers gives what there is of the application: "web-1 running".
func (w *world) containers() []string {
	w.t.Helper()
	d, err := w.c.Inspect(context.Background(), w.name)
	if err != nil {
		return nil
	}
	var list []string
	for _, c := range d.Observed.Containers {
		list = append(list, strings.TrimPrefix(c.Name, w.name+"-")+" "+c.State)
	}
	slices.Sort(list)
	return list
}

func (w *world) want(list ...string) {
	w.t.Helper()
	if got := w.containers(); !slices.Equal(got, list) {
		w.t.Fatalf("containers are %q, want %q", got, list)
	}
}

// ids of the application's containers by name.
func (w *world) ids() map[string]string {
	w.t.Helper()
	d, err := w.c.Inspect(context.Background(), w.name)
	if err != nil {
		w.t.Fatal(err)
	}
	ids := map[string]string{}
	for _, c := range d.Observed.Containers {
		ids[strings.TrimPrefix(c.Name, w.name+"-")] = c.ID
	}
	return ids
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(port int) (string, error) {
	r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b := make([]byte, 256)
	n, _ := r.Body.Read(b)
	if r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", r.Status)
	}
	return strings.TrimSpace(string(b[:n])), nil
}
