package debian

import (
	"fmt"
	"strings"
)

// Version is a package's version: [epoch:]upstream[-revision], deb-version(7).
type Version string

// ParseVersion checks a version's form.
func ParseVersion(s string) (Version, error) {
	epoch, upstream, revision := Version(s).parts()
	if s == "" || len(s) > 256 || upstream == "" {
		return "", fmt.Errorf("version %q: empty or too long", s)
	}
	for _, r := range epoch {
		if !isDigit(r) {
			return "", fmt.Errorf("version %q: the epoch is not a number", s)
		}
	}
	if len(epoch) > 9 {
		return "", fmt.Errorf("version %q: the epoch is too large", s)
	}
	for _, r := range upstream + revision {
		if !isDigit(r) && !isLetter(r) && !strings.ContainsRune(".+-~:", r) {
			return "", fmt.Errorf("version %q: invalid character %q", s, r)
		}
	}
	return Version(s), nil
}

// Compare is negative, zero or positive as v is older than, equal to or newer than o.
func (v Version) Compare(o Version) int {
	ve, vu, vr := v.parts()
	oe, ou, or := o.parts()
	if c := compareDigits(ve, oe); c != 0 {
		return c
	}
	if c := compareText(vu, ou); c != 0 {
		return c
	}
	return compareText(vr, or)
}

func (v Version) parts() (epoch, upstream, revision string) {
	upstream = string(v)
	if e, rest, ok := strings.Cut(upstream, ":"); ok {
		epoch, upstream = e, rest
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// compareText takes turns: a run of non-digits by character, then a run of digits by value.
func compareText(a, b string) int {
	for a != "" || b != "" {
		for a != "" && !isDigit(rune(a[0])) || b != "" && !isDigit(rune(b[0])) {
			x, y := weight(a), weight(b)
			if x != y {
				return x - y
			}
			a, b = a[1:], b[1:]
		}
		var x, y string
		x, a = digits(a)
		y, b = digits(b)
		if c := compareDigits(x, y); c != 0 {
			return c
		}
	}
	return 0
}

// weight orders the first character: tilde, end (and digits), letters, the rest.
func weight(s string) int {
	switch {
	case s == "" || isDigit(rune(s[0])):
		return 0
	case s[0] == '~':
		return -1
	case isLetter(rune(s[0])):
		return int(s[0])
	}
	return int(s[0]) + 256
}

func digits(s string) (run, rest string) {
	i := 0
	for i < len(s) && isDigit(rune(s[i])) {
		i++
	}
	return s[:i], s[i:]
}

// compareDigits compares numbers of any length.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func isDigit(r rune) bool  { return r >= '0' && r <= '9' }
func isLetter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }
