package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/lib/fault"
)

// What a document may cost at most. The largest real projects have some
// thousands of services and 100,000 nodes.
const (
	maxBytes     = 16 << 20 // of one file
	maxNodes     = 1 << 20  // of one file, aliases followed
	maxDepth     = 64       // of mappings and lists in one another
	maxFiles     = 1000     // of one project, included and extended ones counted
	maxDocuments = 100      // in one file
)

// read reads the files that were named, bounds them and those they lead to,
// checks their keys and, where they are of the first format, translates them.
func (s *session) read(ctx context.Context) error {
	seen := map[string]bool{}
	first := 0
	for i := range s.details.ConfigFiles {
		f := &s.details.ConfigFiles[i]
		text, err := s.text(f.Filename)
		if err != nil {
			return err
		}
		docs, err := parse(f.Filename, text)
		if err != nil {
			return err
		}
		f.Content = quietVersion(text, docs)
		if isFirstFormat(docs) {
			first++
			continue
		}
		for _, d := range docs {
			s.named = s.named || textOf(find(d, "name")) != ""
			s.map_(f.Filename, d)
			if !s.Unvalidated {
				if err := checkKeys(f.Filename, d); err != nil {
					return err
				}
			}
		}
		if err := s.follow(ctx, f.Filename, s.details.WorkingDir, docs, seen, 0); err != nil {
			return err
		}
	}
	switch first {
	case 0:
		return nil
	case len(s.details.ConfigFiles):
		return s.translate()
	}
	return fault.Invalidf("the files are of different formats: %s; write all with `services:`", s.formats())
}

func (s *session) formats() string {
	var list []string
	for _, f := range s.details.ConfigFiles {
		docs, err := parse(f.Filename, f.Content)
		kind := "current"
		if err == nil && isFirstFormat(docs) {
			kind = "version 1"
		}
		list = append(list, f.Filename+" ("+kind+")")
	}
	return strings.Join(list, ", ")
}

func (s *session) text(name string) ([]byte, error) {
	if name == "-" {
		in := s.Stdin
		if in == nil {
			in = os.Stdin
		}
		return limited(in, "the standard input")
	}
	return readFile(name)
}

// readFile reads a regular file of at most maxBytes.
func readFile(name string) ([]byte, error) {
	if err := bounded(name); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fault.Invalidf("%w", err)
	}
	defer f.Close()
	return limited(f, name)
}

// bounded refuses what is no regular file (a device never ends, a pipe may
// never begin) and what is too large.
func bounded(name string) error {
	info, err := os.Stat(name)
	switch {
	case os.IsNotExist(err):
		return &fault.Error{Class: fault.ErrNotFound, Noun: "file", ID: name, Msg: name, Err: syscall.ENOENT}
	case err != nil:
		return fault.Invalidf("%w", err)
	case info.IsDir():
		return fault.Invalidf("%s is a folder, not a file", name)
	case info.Mode()&(os.ModeDevice|os.ModeSocket) != 0:
		return fault.Invalidf("%s is not a regular file", name)
	case info.Size() > maxBytes:
		return fault.Invalidf("%s has %d bytes; at most %d are read", name, info.Size(), maxBytes)
	}
	return nil
}

func limited(r io.Reader, name string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, fault.Invalidf("read %s: %w", name, err)
	}
	if len(text) > maxBytes {
		return nil, fault.Invalidf("%s has more than %d bytes", name, maxBytes)
	}
	return text, nil
}

// parse reads the documents of one file into trees with positions, each of
// them a mapping within bounds.
func parse(name string, text []byte) ([]*yaml.Node, error) {
	var docs []*yaml.Node
	if err := shallow(name, text); err != nil {
		return nil, err
	}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var n yaml.Node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, syntax(name, err)
		}
		top := &n
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			top = n.Content[0]
		}
		if top.Kind == yaml.ScalarNode && top.Value == "" {
			continue // an empty document
		}
		if top.Kind != yaml.MappingNode {
			return nil, fault.Invalidf("%s: a Compose file is a mapping of names, such as `services:`", at(name, top))
		}
		if err := measure(name, top); err != nil {
			return nil, err
		}
		if docs = append(docs, top); len(docs) > maxDocuments {
			return nil, fault.Invalidf("%s has more than %d documents", name, maxDocuments)
		}
	}
	if len(docs) == 0 {
		return nil, fault.Invalidf("%s is empty", name)
	}
	return docs, nil
}

// shallow refuses text whose brackets or indentation nest so deep that the
// parser itself would suffer: it recurses.
func shallow(name string, text []byte) error {
	const most = 1000
	open := 0
	for _, b := range text {
		switch b {
		case '[', '{':
			open++
		case ']', '}':
			if open > 0 {
				open--
			}
		case '\n':
			if open > most {
				return fault.Invalidf("%s nests more than %d deep", name, maxDepth)
			}
		}
	}
	if open > most {
		return fault.Invalidf("%s nests more than %d deep", name, maxDepth)
	}
	return nil
}

// syntax words what the YAML parser says.
func syntax(name string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	var line int
	if n, _ := fmt.Sscanf(text, "line %d:", &line); n == 1 {
		_, rest, _ := strings.Cut(text, ": ")
		return fault.Invalidf("%s: %s", app.Position{File: name, Line: line}, rest)
	}
	return fault.Invalidf("%s: %s", name, text)
}

// measure counts a tree as its aliases expand it.
func measure(name string, top *yaml.Node) error {
	m := meter{name: name, size: map[*yaml.Node]int{}, open: map[*yaml.Node]bool{}}
	_, err := m.count(top, 0)
	return err
}

type meter struct {
	name string
	size map[*yaml.Node]int  // of anchored nodes, expanded
	open map[*yaml.Node]bool // being counted: an alias to one is a cycle
}

func (m *meter) count(n *yaml.Node, depth int) (int, error) {
	if depth > maxDepth {
		return 0, fault.Invalidf("%s: nests more than %d deep", at(m.name, n), maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		if m.open[n.Alias] {
			return 0, fault.Invalidf("%s: *%s stands inside itself", at(m.name, n), n.Value)
		}
		if size, ok := m.size[n.Alias]; ok {
			return size, nil
		}
		return m.count(n.Alias, depth+1)
	}
	m.open[n] = true
	defer delete(m.open, n)
	total := 1
	for _, c := range n.Content {
		size, err := m.count(c, depth+1)
		if err != nil {
			return 0, err
		}
		if total += size; total > maxNodes {
			return 0, fault.Invalidf("%s: aliases make this more than %d nodes", at(m.name, n), maxNodes)
		}
	}
	if n.Anchor != "" {
		m.size[n] = total
	}
	return total, nil
}

func at(name string, n *yaml.Node) app.Position { return app.Position{File: name, Line: n.Line} }

// find returns the value of a key of a mapping, or nil.
func find(n *yaml.Node, key string) *yaml.Node {
	n = target(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return target(n.Content[i+1])
		}
	}
	return nil
}

// target follows an alias.
func target(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func textOf(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

// map_ notes where each path of the model was written. Later files win, as
// their values do.
func (s *session) map_(file string, top *yaml.Node) { s.mapTree(file, "", top, 0) }

func (s *session) mapTree(file, path string, n *yaml.Node, depth int) {
	if n.Kind == yaml.AliasNode || depth > maxMapped {
		return // what an alias holds was written elsewhere, once
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			if k.Value == "<<" {
				continue
			}
			next := k.Value
			if path != "" {
				next = path + "." + next
			}
			s.sources[next] = at(file, k)
			s.mapTree(file, next, v, depth+1)
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			next := fmt.Sprintf("%s[%d]", path, i)
			s.sources[next] = at(file, v)
			s.mapTree(file, next, v, depth+1)
		}
	}
}

// maxMapped is how deep the source map goes; the specification's deepest
// attributes are at 8.
const maxMapped = 10

// follow bounds the files that include and extends lead to, before compose-go
// reads them. What it cannot resolve (a remote, a variable of an included env
// file) is left to compose-go, which reports it.
func (s *session) follow(ctx context.Context, file, dir string, docs []*yaml.Node, seen map[string]bool, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, d := range docs {
		for _, r := range references(d) {
			if r.path == "" || s.remote(r.path) != nil {
				continue
			}
			path, err := s.substitute(r.path, s.details.LookupEnv)
			if err != nil {
				continue
			}
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			if seen[path] {
				continue
			}
			seen[path] = true
			if len(seen) > maxFiles {
				return fault.Invalidf("%s: the project has more than %d files", at(file, r.node), maxFiles)
			}
			text, err := readFile(path)
			if err != nil {
				return fault.Invalidf("%s: %w", at(file, r.node), err)
			}
			next, err := parse(path, text)
			if err != nil {
				return err
			}
			if isFirstFormat(next) {
				return fault.Invalidf("%s: %s is of version 1; a current file cannot take services from it", at(file, r.node), path)
			}
			if r.included {
				for _, n := range next {
					s.mapNew(path, n)
					if !s.Unvalidated {
						if err := checkKeys(path, n); err != nil {
							return err
						}
					}
				}
			}
			if err := s.follow(ctx, path, filepath.Dir(path), next, seen, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// quietVersion takes the line `version: …` out of a text: it says nothing any
// more, and compose-go would write a warning about it to the process's stderr.
func quietVersion(text []byte, docs []*yaml.Node) []byte {
	var lines []string
	for _, top := range docs {
		for i := 0; i+1 < len(top.Content); i += 2 {
			k, v := top.Content[i], top.Content[i+1]
			alone := i+2 == len(top.Content) || top.Content[i+2].Line > k.Line
			if k.Value != "version" || k.Column != 1 || v.Kind != yaml.ScalarNode || v.Line != k.Line || v.Anchor != "" || !alone || len(top.Content) == 2 {
				continue
			}
			if lines == nil {
				lines = strings.Split(string(text), "\n")
			}
			if strings.HasPrefix(strings.TrimLeft(lines[k.Line-1], "\"'"), "version") {
				lines[k.Line-1] = ""
			}
		}
	}
	if lines == nil {
		return text
	}
	return []byte(strings.Join(lines, "\n"))
}

// mapNew maps a tree without taking paths over from files read before.
func (s *session) mapNew(file string, top *yaml.Node) {
	other := &session{sources: map[string]app.Position{}}
	other.map_(file, top)
	for path, at := range other.sources {
		if _, ok := s.sources[path]; !ok {
			s.sources[path] = at
		}
	}
}

// reference is a path in a file to another file.
type reference struct {
	path     string
	node     *yaml.Node
	included bool // by include, with all that is in it; else by extends, one service
}

func references(top *yaml.Node) (list []reference) {
	add := func(n *yaml.Node, included bool) {
		if n != nil && n.Kind == yaml.ScalarNode {
			list = append(list, reference{n.Value, n, included})
		}
	}
	if inc := find(top, "include"); inc != nil && inc.Kind == yaml.SequenceNode {
		for _, e := range inc.Content {
			e = target(e)
			switch e.Kind {
			case yaml.ScalarNode:
				add(e, true)
			case yaml.MappingNode:
				if p := find(e, "path"); p != nil && p.Kind == yaml.SequenceNode {
					for _, each := range p.Content {
						add(target(each), true)
					}
				} else {
					add(p, true)
				}
			}
		}
	}
	for _, section := range []string{"services", "jobs"} {
		entries := find(top, section)
		if entries == nil || entries.Kind != yaml.MappingNode {
			continue
		}
		for i := 1; i < len(entries.Content); i += 2 {
			add(find(find(entries.Content[i], "extends"), "file"), false)
		}
	}
	return list
}
