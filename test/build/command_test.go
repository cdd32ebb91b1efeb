package build

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/test/kit"
)

// run executes a program with the script's environment.
func run(ts *testscript.TestScript, dir string, args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	for _, name := range []string{"PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Env = append(cmd.Env, "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// retry runs a program until it succeeds; "! retry" until it fails.
func retry(ts *testscript.TestScript, neg bool, args []string) {
	last := ""
	err := kit.Until(retryLimit, func() error {
		out, err := run(ts, ts.Getenv("WORK"), args...)
		last = out
		if neg && err == nil {
			return errors.New("still succeeds")
		}
		if neg {
			return nil
		}
		return err
	})
	if err != nil {
		ts.Fatalf("retry %v: %v\n%s", args, err, last)
	}
}

// another starts a second engine, which knows nothing of the first, and points
// the script's clients at it: engine.
func (s *scripts) another(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := kit.Timeout()
	defer cancel()
	e, err := kit.Start(ctx, fmt.Sprintf("build-%d", s.engines.Add(1)), false)
	ts.Check(err)
	ts.Defer(func() {
		if err := e.Stop(); err != nil {
			ts.Logf("%v", err) // what it leaves shows when the first engine ends
		}
	})
	ts.Check(e.LoadBusybox(ctx))
	ts.Setenv("DOCKER_HOST", "unix://"+e.Socket)
	ts.Setenv("SOCK", e.Socket)
}

// serve answers HTTP with a folder's files: serve PORT FOLDER. Below /git it
// is a git server of the repositories there, below /private both are there for
// the user "someone" with the password "s3cr3t" alone.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: serve port folder")
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+args[0])
	ts.Check(err)
	dir := ts.MkAbs(args[1])
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.Handle("/private/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, password, _ := r.BasicAuth(); name != "someone" || password != "s3cr3t" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		http.StripPrefix("/private", mux).ServeHTTP(w, r)
	}))
	mux.Handle("/git/", &cgi.Handler{
		Path: "/usr/lib/git-core/git-http-backend", Root: "/git",
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	ts.Defer(func() { _ = server.Close() })
}

// repository makes a git repository of a folder: git-repo FOLDER.
func repository(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	for _, c := range [][]string{{"git", "init", "-q", "-b", "main"}, {"git", "add", "-A"}, {"git", "commit", "-q", "-m", "first"}} {
		if out, err := run(ts, dir, c...); err != nil {
			ts.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".git")); err != nil {
		ts.Fatalf("%v", fmt.Errorf("no repository: %w", err))
	}
}
