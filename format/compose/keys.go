package compose

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/schema"
	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/prose"
)

// shape is what the specification allows at one place, its alternatives joined.
type shape struct {
	keys   map[string]*shape // by name
	other  *shape            // of any other name, or nil
	names  []*regexp.Regexp  // that other names must match one of; none: any
	item   *shape            // of list entries
	closed bool              // other names are an error
	extra  bool              // names that begin with x- are free
}

// specification is the schema of compose-go as shapes; definitions are shared,
// so a recursive one is a cycle.
var specification = sync.OnceValue(func() *shape {
	var root map[string]any
	if err := json.Unmarshal([]byte(schema.Schema), &root); err != nil {
		panic("compose-go's schema: " + err.Error()) // embedded at build time
	}
	defs, _ := root["$defs"].(map[string]any)
	r := shaper{defs: defs, done: map[string]*shape{}}
	s := &shape{}
	r.add(s, root)
	return s
})

type shaper struct {
	defs map[string]any
	done map[string]*shape
}

// of gives the shape of one schema; a reference alone is shared.
func (r *shaper) of(node any) *shape {
	m, _ := node.(map[string]any)
	if ref, ok := m["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/$defs/")
		if s, ok := r.done[name]; ok {
			return s
		}
		s := &shape{}
		r.done[name] = s
		def, _ := r.defs[name].(map[string]any)
		r.add(s, def)
		return s
	}
	s := &shape{}
	r.add(s, m)
	return s
}

func (r *shaper) add(s *shape, node map[string]any) {
	if ref, ok := node["$ref"].(string); ok {
		def, _ := r.defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		r.add(s, def)
	}
	for _, word := range []string{"oneOf", "anyOf", "allOf"} {
		list, _ := node[word].([]any)
		for _, e := range list {
			if m, ok := e.(map[string]any); ok {
				r.add(s, m)
			}
		}
	}
	for _, word := range []string{"additionalProperties", "unevaluatedProperties"} {
		switch v := node[word].(type) {
		case bool:
			s.closed = s.closed || !v
		case map[string]any:
			s.other = r.of(v)
		}
	}
	props, _ := node["properties"].(map[string]any)
	for name, sub := range props {
		if s.keys == nil {
			s.keys = map[string]*shape{}
		}
		if had, ok := s.keys[name]; ok {
			m, _ := sub.(map[string]any)
			merged := *had
			r.add(&merged, m)
			s.keys[name] = &merged
			continue
		}
		s.keys[name] = r.of(sub)
	}
	patterns, _ := node["patternProperties"].(map[string]any)
	for pattern, sub := range patterns {
		if strings.HasPrefix(pattern, "^x-") {
			s.extra = true
			continue
		}
		s.names = append(s.names, regexp.MustCompile(pattern))
		s.other = r.of(sub)
	}
	if items, ok := node["items"]; ok {
		s.item = r.of(items)
	}
}

// checkKeys refuses the first key that the specification does not know, with
// its line and the known name nearest to it.
func checkKeys(file string, top *yaml.Node) error {
	return (&checker{file: file}).walk(top, specification(), "")
}

type checker struct {
	file string
	seen map[*yaml.Node]*shape // anchored nodes, checked once a shape
}

func (c *checker) walk(n *yaml.Node, s *shape, path string) error {
	if s == nil || n.Tag == "!reset" {
		return nil
	}
	if n.Kind == yaml.AliasNode {
		if c.seen == nil {
			c.seen = map[*yaml.Node]*shape{}
		}
		if c.seen[n.Alias] == s {
			return nil
		}
		c.seen[n.Alias] = s
		return c.walk(n.Alias, s, path)
	}
	switch n.Kind {
	case yaml.SequenceNode:
		for i, e := range n.Content {
			if err := c.walk(e, s.item, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := c.key(n.Content[i], n.Content[i+1], s, path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) key(k, v *yaml.Node, s *shape, path string) error {
	if k.Value == "<<" && k.Tag != "!!str" {
		return c.merge(v, s, path)
	}
	next := k.Value
	if path != "" {
		next = path + "." + next
	}
	if sub, ok := s.keys[k.Value]; ok {
		return c.walk(v, sub, next)
	}
	if s.extra && strings.HasPrefix(k.Value, "x-") {
		return nil
	}
	if s.other != nil {
		if len(s.names) == 0 || slices.ContainsFunc(s.names, func(r *regexp.Regexp) bool { return r.MatchString(k.Value) }) {
			return c.walk(v, s.other, next)
		}
		return fault.Invalidf("%s: %q cannot be a name%s; names match %s", at(c.file, k), k.Value, in(path), s.names[0])
	}
	if !s.closed {
		return nil
	}
	return fault.Invalidf("%s: unknown key %q%s%s", at(c.file, k), k.Value, in(path), suggest(k.Value, slices.Sorted(maps.Keys(s.keys))))
}

// merge checks what a merge key brings in, as if it were written here.
func (c *checker) merge(v *yaml.Node, s *shape, path string) error {
	if t := target(v); t.Kind == yaml.SequenceNode {
		for _, e := range t.Content {
			if err := c.walk(e, s, path); err != nil {
				return err
			}
		}
		return nil
	}
	return c.walk(v, s, path)
}

func in(path string) string {
	if path == "" {
		return " at the top"
	}
	return " in " + path
}

// NoService is the error of a service that is none of those there are.
func NoService(name string, known []string) error {
	return fault.Invalidf("no such service: %s%s", name, suggest(name, known))
}

// suggest names the known word nearest to a wrong one, if one is near.
func suggest(wrong string, known []string) string {
	best := prose.Nearest(wrong, known)
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}
