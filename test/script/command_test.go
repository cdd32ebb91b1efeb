package script

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/test/kit"
)

func regexpOf(ts *testscript.TestScript, text string) *regexp.Regexp {
	re, err := regexp.Compile("(?m)" + text)
	ts.Check(err)
	return re
}

// api sends a raw request: api METHOD PATH [BODY | @FILE] and prints the
// status code on the first line and the body after it.
func (s *scripts) api(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: api METHOD PATH [BODY|@FILE] [CONTENT-TYPE]")
	}
	var body io.Reader
	kind := ""
	if len(args) > 2 {
		kind = "application/json"
		text := []byte(args[2])
		if name, ok := strings.CutPrefix(args[2], "@"); ok {
			text = []byte(ts.ReadFile(name))
		}
		body = bytes.NewReader(text)
	}
	if len(args) > 3 {
		kind = args[3]
	}
	resp, err := s.engine.API.Do(s.ctx, args[0], args[1], kind, body)
	ts.Check(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s\n", resp.StatusCode, bytes.TrimSpace(text))
	if (resp.StatusCode >= 400) != neg {
		ts.Fatalf("%s %s: %d %s", args[0], args[1], resp.StatusCode, text)
	}
}

// archive writes hostile and plain tar files: archive KIND FILE.
func archive(ts *testscript.TestScript, _ bool, args []string) {
	entries := map[string][]tar.Header{
		"plain":    {{Name: "one", Mode: 0o644, Size: 4}},
		"climb":    {{Name: "../../../../../../tmp/climbed-" + ts.Getenv("ID"), Mode: 0o644, Size: 4}},
		"absolute": {{Name: "/tmp/climbed-" + ts.Getenv("ID"), Mode: 0o644, Size: 4}},
		"link": {
			{Name: "out", Linkname: "/", Typeflag: tar.TypeSymlink, Mode: 0o777},
			{Name: "out/tmp/climbed-" + ts.Getenv("ID"), Mode: 0o644, Size: 4},
		},
		"hardlink": {{Name: "shadow", Linkname: "../../../../../../../../etc/shadow", Typeflag: tar.TypeLink, Mode: 0o644}},
	}[args[0]]
	if entries == nil {
		ts.Fatalf("unknown archive %s", args[0])
	}
	f, err := os.Create(path(ts, args[1]))
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

// registry starts docker-registry on a free loopback port and sets $REG.
func registry(ts *testscript.TestScript, _ bool, _ []string) {
	program, err := exec.LookPath("docker-registry")
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	address := l.Addr().String()
	ts.Check(l.Close())
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %s}\n",
		path(ts, "registry"), address)
	ts.Check(os.WriteFile(path(ts, "registry.yml"), []byte(config), 0o644))
	cmd := exec.Command(program, "serve", path(ts, "registry.yml"))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ts.Check(kit.Until(10*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	}))
	ts.Setenv("REG", address)
}
