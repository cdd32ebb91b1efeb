package debian

import (
	"fmt"
	"strings"
)

// Relation is one package named by a dependency, with an optional version rule.
type Relation struct {
	Name    string
	Op      string // "", "<<", "<=", "=", ">=", ">>"
	Version Version
}

// Relations is a dependency field: all groups must hold, one relation of each.
type Relations [][]Relation

func (r Relation) String() string {
	if r.Op == "" {
		return r.Name
	}
	return r.Name + " (" + r.Op + " " + string(r.Version) + ")"
}

// Holds says whether a version satisfies the rule.
func (r Relation) Holds(v Version) bool {
	if r.Op == "" {
		return true
	}
	c := v.Compare(r.Version)
	switch r.Op {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	case ">>":
		return c > 0
	}
	return false
}

// ParseRelations reads a dependency field. Architecture qualifiers (:any) are
// dropped: one root holds one architecture.
func ParseRelations(field string) (Relations, error) {
	var all Relations
	for _, group := range strings.Split(field, ",") {
		if group = strings.TrimSpace(group); group == "" {
			continue
		}
		var list []Relation
		for _, word := range strings.Split(group, "|") {
			r, err := parseRelation(strings.TrimSpace(word))
			if err != nil {
				return nil, err
			}
			list = append(list, r)
		}
		all = append(all, list)
	}
	return all, nil
}

func parseRelation(s string) (Relation, error) {
	name, rule, ruled := strings.Cut(s, "(")
	name = strings.TrimSpace(name)
	name, _, _ = strings.Cut(name, ":")
	if !validName(name) {
		return Relation{}, fmt.Errorf("relation %q: not a package's name", s)
	}
	r := Relation{Name: name}
	if !ruled {
		return r, nil
	}
	rule, rest, closed := strings.Cut(rule, ")")
	if !closed || strings.TrimSpace(rest) != "" {
		return Relation{}, fmt.Errorf("relation %q: the version rule is not closed", s)
	}
	rule = strings.TrimSpace(rule)
	i := 0
	for i < len(rule) && strings.IndexByte("<=>", rule[i]) >= 0 {
		i++
	}
	switch r.Op = rule[:i]; r.Op {
	case "<<", "<=", "=", ">=", ">>":
	case "<", ">": // the old spelling of <= and >=
		r.Op += "="
	default:
		return Relation{}, fmt.Errorf("relation %q: unknown operator %q", s, r.Op)
	}
	v, err := ParseVersion(strings.TrimSpace(rule[i:]))
	if err != nil {
		return Relation{}, fmt.Errorf("relation %q: %w", s, err)
	}
	r.Version = v
	return r, nil
}

// validName follows Policy 5.6.7, and lets one-letter names pass.
func validName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i, r := range s {
		if !isDigit(r) && (r < 'a' || r > 'z') && (i == 0 || !strings.ContainsRune("+-.", r)) {
			return false
		}
	}
	return true
}
