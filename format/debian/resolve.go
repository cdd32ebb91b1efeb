package debian

import (
	"fmt"
	"slices"
	"strings"
)

// Index finds packages by name and by what they provide. Of one name the
// newest version counts.
type Index struct {
	byName    map[string]*Package
	providers map[string][]*Package // sorted when asked
}

// NewIndex returns an empty index.
func NewIndex() *Index {
	return &Index{byName: map[string]*Package{}, providers: map[string][]*Package{}}
}

// Add offers a package. An older version of a known name is ignored.
func (x *Index) Add(p *Package) {
	if old, ok := x.byName[p.Name]; ok && old.Version.Compare(p.Version) >= 0 {
		return
	}
	x.byName[p.Name] = p
	for _, group := range p.Provides {
		for _, r := range group {
			x.providers[r.Name] = append(x.providers[r.Name], p)
		}
	}
}

// Get gives the newest package of a name, or nil.
func (x *Index) Get(name string) *Package { return x.byName[name] }

// Len is how many names the index has.
func (x *Index) Len() int { return len(x.byName) }

// Base names what every root has: essential packages, those of the priority
// "required", and apt. Sorted.
func (x *Index) Base() []string {
	var names []string
	for name, p := range x.byName {
		if p.Essential || p.Priority == "required" || name == "apt" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// selection is a growing set of packages.
type selection struct {
	index   *Index
	have    map[string]bool // installed before, by name
	chosen  map[string]*Package
	offered map[string][]offer // by real or provided name
	order   []*Package
}

type offer struct {
	by      *Package
	version Version // "" for a provide without a version
	real    bool
}

// Resolve gives the packages that must be installed so that all of want work
// on a root which has the packages have: want and their Depends and
// Pre-Depends, each package after those it depends on (as far as there is no
// circle). The same index and names give the same answer.
//
// Where a dependency has alternatives, one that is there already wins, then
// the first that the index can satisfy; dependencies without a choice are
// followed before those with one. Recommended packages are left out.
func Resolve(x *Index, want []string, have []*Package) ([]*Package, error) {
	s := &selection{index: x, have: map[string]bool{}, chosen: map[string]*Package{}, offered: map[string][]offer{}}
	for _, p := range have {
		s.have[p.Name] = true
		s.offer(p)
	}
	for _, name := range want {
		p := x.Get(name)
		if p == nil {
			return nil, fmt.Errorf("no package %s in the index", name)
		}
		s.add(p)
	}
	var choices []need
	for i := 0; i < len(s.order) || len(choices) > 0; {
		if i < len(s.order) {
			p := s.order[i]
			i++
			for _, group := range slices.Concat(p.PreDepends, p.Depends) {
				if len(group) > 1 {
					choices = append(choices, need{p, group})
				} else if err := s.satisfy(p, group); err != nil {
					return nil, err
				}
			}
			continue
		}
		n := choices[0]
		choices = choices[1:]
		if err := s.satisfy(n.by, n.group); err != nil {
			return nil, err
		}
	}
	if err := s.conflicts(have); err != nil {
		return nil, err
	}
	return s.sorted(), nil
}

type need struct {
	by    *Package
	group []Relation
}

func (s *selection) add(p *Package) {
	if s.have[p.Name] || s.chosen[p.Name] != nil {
		return
	}
	s.chosen[p.Name] = p
	s.order = append(s.order, p)
	s.offer(p)
}

func (s *selection) offer(p *Package) {
	s.offered[p.Name] = append(s.offered[p.Name], offer{p, p.Version, true})
	for _, group := range p.Provides {
		for _, r := range group {
			s.offered[r.Name] = append(s.offered[r.Name], offer{p, r.Version, false})
		}
	}
}

// holds says whether something offered satisfies r. A provide without a
// version satisfies no versioned relation (Policy 7.5).
func (o offer) holds(r Relation) bool {
	return r.Op == "" || o.version != "" && r.Holds(o.version)
}

func (s *selection) satisfy(by *Package, group []Relation) error {
	for _, r := range group {
		if slices.ContainsFunc(s.offered[r.Name], func(o offer) bool { return o.holds(r) }) {
			return nil
		}
	}
	for _, r := range group {
		if p := s.candidate(r); p != nil {
			s.add(p)
			return nil
		}
	}
	words := make([]string, len(group))
	for i, r := range group {
		words[i] = r.String()
	}
	return fmt.Errorf("package %s %s needs %s, which the index does not have", by.Name, by.Version, strings.Join(words, " | "))
}

// candidate is the package that r would bring: the real one, else the provider
// of the highest priority, then of the first name.
func (s *selection) candidate(r Relation) *Package {
	if p := s.index.Get(r.Name); p != nil && r.Holds(p.Version) && !s.clashes(p) {
		return p
	}
	var best *Package
	for _, p := range s.index.providers[r.Name] {
		if s.index.Get(p.Name) != p || s.clashes(p) || !provides(p, r) {
			continue
		}
		if best == nil || rank(p) < rank(best) || rank(p) == rank(best) && p.Name < best.Name {
			best = p
		}
	}
	return best
}

func provides(p *Package, r Relation) bool {
	for _, group := range p.Provides {
		for _, o := range group {
			if o.Name == r.Name && (offer{p, o.Version, false}).holds(r) {
				return true
			}
		}
	}
	return false
}

func rank(p *Package) int {
	if i := slices.Index([]string{"required", "important", "standard", "optional"}, p.Priority); i >= 0 {
		return i
	}
	return 4
}

// clashes says whether p conflicts with what is chosen so far.
func (s *selection) clashes(p *Package) bool {
	if s.conflict(p) != "" {
		return true
	}
	for _, q := range s.order {
		for _, group := range q.Conflicts {
			for _, r := range group {
				if p.Name != q.Name && (p.Name == r.Name && r.Holds(p.Version) || provides(p, r)) {
					return true
				}
			}
		}
	}
	return false
}

// conflict names what of the selection p's own Conflicts and Breaks exclude.
func (s *selection) conflict(p *Package) string {
	for _, group := range p.Conflicts {
		for _, r := range group {
			for _, o := range s.offered[r.Name] {
				if o.by.Name != p.Name && o.holds(r) {
					return o.by.Name
				}
			}
		}
	}
	return ""
}

func (s *selection) conflicts(have []*Package) error {
	for _, p := range slices.Concat(have, s.order) {
		if other := s.conflict(p); other != "" {
			return fmt.Errorf("packages %s and %s exclude one another", p.Name, other)
		}
	}
	return nil
}

// sorted puts dependencies before their dependents, names in order otherwise.
func (s *selection) sorted() []*Package {
	names := make([]string, 0, len(s.chosen))
	for name := range s.chosen {
		names = append(names, name)
	}
	slices.Sort(names)
	var out []*Package
	seen := map[string]bool{}
	// An explicit stack: a hostile index may have chains of any length.
	type frame struct {
		p    *Package
		next []*Package
	}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		stack := []*frame{{s.chosen[name], s.dependencies(s.chosen[name])}}
		for len(stack) > 0 {
			top := stack[len(stack)-1]
			if len(top.next) == 0 {
				out = append(out, top.p)
				stack = stack[:len(stack)-1]
				continue
			}
			p := top.next[0]
			top.next = top.next[1:]
			if !seen[p.Name] {
				seen[p.Name] = true
				stack = append(stack, &frame{p, s.dependencies(p)})
			}
		}
	}
	return out
}

// dependencies are the chosen packages that satisfy p's relations.
func (s *selection) dependencies(p *Package) []*Package {
	var list []*Package
	for _, group := range slices.Concat(p.PreDepends, p.Depends) {
		for _, r := range group {
			for _, o := range s.offered[r.Name] {
				if s.chosen[o.by.Name] != nil && o.holds(r) {
					list = append(list, o.by)
				}
			}
		}
	}
	return list
}

// Batches cuts a resolved list so that a batch's Pre-Depends are all in
// earlier batches: what `dpkg --install` can take at once.
func Batches(list []*Package) [][]*Package {
	offers := map[string][]*Package{}
	for _, p := range list {
		offers[p.Name] = append(offers[p.Name], p)
		for _, group := range p.Provides {
			for _, r := range group {
				offers[r.Name] = append(offers[r.Name], p)
			}
		}
	}
	depth := map[string]int{}
	// Relax until nothing moves; a circle of Pre-Depends is bounded by the number of packages.
	for range len(list) {
		moved := false
		raise := func(p, on *Package, by int) {
			if d := depth[on.Name] + by; p.Name != on.Name && depth[p.Name] < d && d <= len(list) {
				depth[p.Name], moved = d, true
			}
		}
		for _, p := range list {
			for _, group := range p.PreDepends {
				for _, r := range group {
					for _, on := range offers[r.Name] {
						raise(p, on, 1)
					}
				}
			}
			for _, group := range p.Depends {
				for _, r := range group {
					for _, on := range offers[r.Name] {
						raise(p, on, 0)
					}
				}
			}
		}
		if !moved {
			break
		}
	}
	var out [][]*Package
	for d := 0; d <= len(list); d++ {
		var batch []*Package
		for _, p := range list {
			if depth[p.Name] == d {
				batch = append(batch, p)
			}
		}
		if len(batch) > 0 {
			out = append(out, batch)
		}
	}
	return out
}
