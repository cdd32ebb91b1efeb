package script

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
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
