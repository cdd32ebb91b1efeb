package kit

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// leaveLimit is how long an engine that has stopped may take to leave its host.
const leaveLimit = 10 * time.Second

// One runs one script in the test it is given, and counts its skip.
type One struct{ *testing.T }

// Run runs the script in the same test.
func (o One) Run(_ string, f func(testscript.T)) { f(o) }

// Parallel does nothing: the test is parallel already.
func (o One) Parallel() {}

// Verbose tells whether scripts say what they do.
func (o One) Verbose() bool { return testing.Verbose() }

// Skip counts what the script lacks.
func (o One) Skip(args ...any) {
	reason := strings.TrimSpace(fmt.Sprint(args...))
	CountSkip(reason)
	o.T.Skip(reason)
}

// End stops an engine; one of Berth must leave nothing behind.
func (e *Engine) End(t *testing.T) {
	if err := e.Stop(); err != nil {
		t.Error(err)
	}
	if os.Getenv("BERTH_TEST_LOG") != "" {
		t.Log(e.Log())
	}
	if e.IsPeer {
		e.RemoveCgroups()
	}
	if e.IsPeer || e.IsRunning {
		return
	}
	err := Until(leaveLimit, func() error {
		left, err := e.Leftovers()
		if err == nil && len(left) > 0 {
			err = errors.New("left behind:\n" + strings.Join(left, "\n"))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// RemoveAll removes the containers, networks and volumes that a filter of the
// API matches, as {"name":["x"]}. Failures show as leftovers when the engine ends.
func (e *Engine) RemoveAll(filter string) {
	ctx, cancel := Timeout()
	defer cancel()
	query := "?all=1&filters=" + url.QueryEscape(filter)
	var containers, networks []struct{ ID string }
	if e.API.Call(ctx, "GET", "/containers/json"+query, nil, &containers) == nil {
		for _, c := range containers {
			_ = e.API.Call(ctx, "DELETE", "/containers/"+c.ID+"?force=1&v=1", nil, nil)
		}
	}
	if e.API.Call(ctx, "GET", "/networks"+query, nil, &networks) == nil {
		for _, n := range networks {
			_ = e.API.Call(ctx, "DELETE", "/networks/"+n.ID, nil, nil)
		}
	}
	var volumes struct{ Volumes []struct{ Name string } }
	if e.API.Call(ctx, "GET", "/volumes"+query, nil, &volumes) == nil {
		for _, v := range volumes.Volumes {
			_ = e.API.Call(ctx, "DELETE", "/volumes/"+v.Name+"?force=1", nil, nil)
		}
	}
}

// RegistryCommand is the scripts' "registry [USER PASSWORD]": it starts
// docker-registry on a free port of the loopback and sets $REG to its address.
func RegistryCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 && len(args) != 2 {
		ts.Fatalf("usage: registry [USER PASSWORD]")
	}
	dir, err := os.MkdirTemp(ts.Getenv("WORK"), "registry-")
	ts.Check(err)
	r := Registry{Dir: dir}
	if len(args) == 2 {
		r.User, r.Password = args[0], args[1]
	}
	address, stop, err := r.Start()
	if errors.Is(err, ErrMissing) {
		ts.Fatalf("%v: install the package docker-registry", err)
	}
	ts.Check(err)
	ts.Defer(stop)
	ts.Setenv("REG", address)
	ts.Setenv("REGDIR", filepath.Join(dir, "data"))
}

// ArchiveCommand is the scripts' "archive KIND FILE": it writes hostile and plain tar files.
func ArchiveCommand(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: archive KIND FILE")
	}
	entries := map[string][]tar.Header{
		"plain":    {{Name: "one", Mode: 0o644, Size: 4}},
		"climb":    {{Name: "../../../../../../tmp/climbed-" + ts.Getenv("ID"), Mode: 0o644, Size: 4}},
		"absolute": {{Name: "/tmp/climbed-" + ts.Getenv("ID"), Mode: 0o644, Size: 4}},
		"link": {
			{Name: "out", Linkname: "/", Typeflag: tar.TypeSymlink, Mode: 0o777},
			{Name: "out/tmp/climbed-" + ts.Getenv("ID"), Mode: 0o644, Size: 4},
		},
		"hardlink": {{Name: "shadow", Linkname: "../../../../../../../../etc/shadow", Typeflag: tar.TypeLink, Mode: 0o644}},
		"device":   {{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
	}[args[0]]
	if entries == nil {
		ts.Fatalf("unknown archive %s", args[0])
	}
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	defer f.Close()
	w := tar.NewWriter(f)
	for _, h := range entries {
		ts.Check(w.WriteHeader(&h))
		_, err := w.Write(make([]byte, h.Size))
		ts.Check(err)
	}
	ts.Check(w.Close())
}
