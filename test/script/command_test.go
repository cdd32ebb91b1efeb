package script

import (
	"bytes"
	"fmt"
	"io"
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
