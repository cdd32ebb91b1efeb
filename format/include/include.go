// Package include reads INCLUDE in Dockerfiles: `INCLUDE path` stands for the
// lines of another file of the same folder tree. It is a pure function of
// texts; who calls it says how a file is read.
package include

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Limits of one Dockerfile with all that it includes.
const (
	maxDepth = 8
	maxFiles = 64
	maxBytes = 4 << 20
)

// Error says where an INCLUDE is that cannot be followed.
type Error struct {
	File string
	Line int // from 1
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: INCLUDE: %v", e.File, e.Line, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Expand gives a Dockerfile's text with every INCLUDE replaced. name is the
// Dockerfile's path in its folder; read gives a file by its clean path there.
// A text without INCLUDE comes back as it is.
func Expand(name string, text []byte, read func(path string) ([]byte, error)) ([]byte, error) {
	x := expander{read: read}
	return x.expand([]string{path.Clean(name)}, text)
}

type expander struct {
	read  func(string) ([]byte, error)
	files int
	bytes int
}

// expand replaces in the last of the files on the way.
func (x *expander) expand(way []string, text []byte) ([]byte, error) {
	if x.bytes += len(text); x.bytes > maxBytes {
		return nil, fmt.Errorf("%s: the Dockerfile exceeds %d bytes with what it includes", way[0], maxBytes)
	}
	if !bytes.Contains(bytes.ToUpper(text), []byte("INCLUDE")) {
		return text, nil
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return text, nil // who builds it says what is wrong
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	var out bytes.Buffer
	next := 0 // the first line that is not written yet
	for _, n := range parsed.AST.Children {
		if !strings.EqualFold(n.Value, "include") {
			continue
		}
		out.Write(bytes.Join(lines[next:n.StartLine-1], nil))
		next = n.EndLine
		inner, err := x.include(way, n)
		if err != nil {
			return nil, &Error{File: way[len(way)-1], Line: n.StartLine, Err: err}
		}
		out.Write(inner)
		if len(inner) > 0 && inner[len(inner)-1] != '\n' {
			out.WriteByte('\n')
		}
	}
	out.Write(bytes.Join(lines[next:], nil))
	return out.Bytes(), nil
}

func (x *expander) include(way []string, n *parser.Node) ([]byte, error) {
	_, rest, _ := strings.Cut(strings.TrimSpace(n.Original), " ")
	rest = strings.TrimSpace(rest)
	target := path.Join(path.Dir(way[len(way)-1]), rest)
	switch {
	case rest == "":
		return nil, fmt.Errorf("names no file")
	case strings.ContainsAny(rest, " \t$"):
		return nil, fmt.Errorf("%q is no plain path", rest)
	case path.IsAbs(rest) || target == ".." || strings.HasPrefix(target, "../"):
		return nil, fmt.Errorf("%s leaves the folder of the Dockerfile", rest)
	case slices.Contains(way, target):
		return nil, fmt.Errorf("%s includes itself", target)
	case len(way) >= maxDepth:
		return nil, fmt.Errorf("%s is nested deeper than %d", target, maxDepth)
	}
	if x.files++; x.files > maxFiles {
		return nil, fmt.Errorf("more than %d files", maxFiles)
	}
	text, err := x.read(target)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", target, err)
	}
	return x.expand(append(slices.Clone(way), target), text)
}
