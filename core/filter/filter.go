// Package filter evaluates the filters of lists, prunes and events: a map
// from a filter's name to the values given for it. Values of one name are
// alternatives; names add up, as in the Docker Engine API.
package filter

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/lib/fault"
)

// Args maps a filter's name to the values given for it.
type Args map[string][]string

// Check refuses names that are not among the accepted ones.
func (a Args) Check(accepted ...string) error {
	for name := range a {
		if !slices.Contains(accepted, name) {
			return fault.Invalidf("invalid filter '%s'", name)
		}
	}
	return nil
}

// Exact reports whether the filter is absent or one value equals s.
func (a Args) Exact(name, s string) bool {
	vals := a[name]
	return len(vals) == 0 || slices.Contains(vals, s)
}

// Prefix reports whether the filter is absent or one value is a prefix of s.
func (a Args) Prefix(name, s string) bool {
	vals := a[name]
	return len(vals) == 0 || slices.ContainsFunc(vals, func(v string) bool { return strings.HasPrefix(s, v) })
}

// Match reports whether the filter is absent or one value, taken as a
// regular expression (as text where it is none), occurs in s.
func (a Args) Match(name, s string) bool {
	vals := a[name]
	return len(vals) == 0 || slices.ContainsFunc(vals, func(v string) bool {
		re, err := regexp.Compile(v)
		if err != nil {
			return strings.Contains(s, v)
		}
		return re.MatchString(s)
	})
}

// Labels reports whether every value of the named filter ("key" or
// "key=value") holds in labels. Unlike other filters all must hold.
func (a Args) Labels(name string, labels map[string]string) bool {
	for _, want := range a[name] {
		k, v, hasValue := strings.Cut(want, "=")
		got, ok := labels[k]
		if !ok || hasValue && got != v {
			return false
		}
	}
	return true
}

// Bool reads a true/false filter. given is false where the filter is absent.
func (a Args) Bool(name string) (value, given bool, err error) {
	vals := a[name]
	if len(vals) == 0 {
		return false, false, nil
	}
	var t, f bool
	for _, v := range vals {
		switch v {
		case "1", "true", "True", "TRUE", "t":
			t = true
		case "0", "false", "False", "FALSE", "f":
			f = true
		default:
			return false, false, fault.Invalidf("invalid filter '%s=%s'", name, v)
		}
	}
	if t == f {
		return false, false, fault.Invalidf("invalid filter '%s=[%s]'", name, strings.Join(vals, " "))
	}
	return t, true, nil
}

// Until reads a filter that gives a moment: a duration before now, a date, or
// seconds since 1970. It is zero where the filter is absent.
func (a Args) Until(name string) (time.Time, error) {
	vals := a[name]
	if len(vals) == 0 {
		return time.Time{}, nil
	}
	if len(vals) > 1 {
		return time.Time{}, fault.Invalidf("more than one %s filter specified", name)
	}
	v := vals[0]
	if d, err := time.ParseDuration(v); err == nil {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	if seconds, err := strconv.ParseFloat(v, 64); err == nil && seconds > -1e11 && seconds < 1e11 {
		return time.Unix(0, 0).Add(time.Duration(seconds*1e3) * time.Millisecond), nil
	}
	return time.Time{}, fault.Invalidf("invalid value for %s: %q", name, v)
}
