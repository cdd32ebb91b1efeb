package app

import (
	_ "embed" // the table below
	"maps"
	"slices"
	"strings"
	"sync"
)

// Standing is what becomes of an attribute of the specification.
type Standing string

// The standings. Nothing is passed over in silence.
const (
	Honoured Standing = "honoured"
	Refused  Standing = "refused"
)

// Attribute is one attribute path of the specification ("services.*.build.args",
// "services.*.ports.[].mode"; * is a name, [] an entry of a list).
type Attribute struct {
	Path     string
	Standing Standing
	Why      string // what to do instead, of what is refused
}

// attributes.txt has a line for each path of the specification: the path, its
// standing and, where it is not honoured, why.
//
//go:embed attributes.txt
var attributesText string

// attributeTree finds attributes by their path.
type attributeTree struct {
	*Attribute
	below map[string]*attributeTree
}

var attributes = sync.OnceValues(func() ([]Attribute, *attributeTree) {
	var list []Attribute
	for _, line := range strings.Split(strings.TrimSpace(attributesText), "\n") {
		path, rest, _ := strings.Cut(line, " ")
		standing, why, _ := strings.Cut(rest, " ")
		list = append(list, Attribute{path, Standing(standing), why})
	}
	top := &attributeTree{below: map[string]*attributeTree{}}
	for i := range list {
		at := top
		for _, word := range strings.Split(list[i].Path, ".") {
			next := at.below[word]
			if next == nil {
				next = &attributeTree{below: map[string]*attributeTree{}}
				at.below[word] = next
			}
			at = next
		}
		at.Attribute = &list[i]
	}
	return list, top
})

// Attributes are all attributes of the specification, sorted by path.
func Attributes() []Attribute {
	list, _ := attributes()
	return list
}

// find gives the attribute that a path as written ("services.web.ports[0].mode")
// is of. A name may hold dots, so a * may stand for several words.
func (t *attributeTree) find(words []string) *Attribute {
	if len(words) == 0 {
		return t.Attribute
	}
	if next, ok := t.below[words[0]]; ok {
		if a := next.find(words[1:]); a != nil {
			return a
		}
	}
	if any, ok := t.below["*"]; ok {
		for n := 1; n <= len(words); n++ {
			if a := any.find(words[n:]); a != nil {
				return a
			}
		}
	}
	return nil
}

func split(path string) []string {
	var words []string
	for _, word := range strings.Split(path, ".") {
		name, rest, listed := strings.Cut(word, "[")
		words = append(words, name)
		if listed {
			for range strings.Count(rest, "]") {
				words = append(words, "[]")
			}
		}
	}
	return words
}

// of are the paths of the files that have a standing, outermost only, in the
// order of the files' lines.
func (a *App) of(standing Standing) (paths []string) {
	_, tree := attributes()
	for path := range maps.Keys(a.Sources) {
		if found := tree.find(split(path)); found != nil && found.Standing == standing {
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(x, y string) int {
		p, q := a.Sources[x], a.Sources[y]
		if c := strings.Compare(p.File, q.File); c != 0 {
			return c
		}
		if p.Line != q.Line {
			return p.Line - q.Line
		}
		return strings.Compare(x, y)
	})
	return slices.DeleteFunc(paths, func(p string) bool {
		return slices.ContainsFunc(paths, func(outer string) bool {
			return strings.HasPrefix(p, outer+".") || strings.HasPrefix(p, outer+"[")
		})
	})
}
