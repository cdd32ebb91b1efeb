package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/lib/host"
)

// page tells what was measured, with ratios and goals.
func (b *bench) page() string {
	f := host.Look()
	var p strings.Builder
	fmt.Fprintf(&p, "# Applications measured\n\nWritten by `make bench-compose` on %s, kernel %s, %d processors, %s: whole commands in milliseconds, the clients in turn, images local.\n"+
		"Each value is a median; `up`, `down` and `scale` of many containers are taken once. The ratio is that of `berth compose` to docker-compose 1.29.2 on docker.io.\n\n",
		f.Distribution, f.Kernel, runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"))
	p.WriteString("| case |")
	line := "|---|"
	by := map[string]*subject{}
	for _, s := range b.subjects {
		by[s.name] = s
		fmt.Fprintf(&p, " %s |", s.name)
		line += "---:|"
	}
	fmt.Fprintf(&p, " ratio | goal | reached |\n%s---:|---|---|\n", line)
	for _, r := range rows {
		fmt.Fprintf(&p, "| %s |", r.name)
		for _, s := range b.subjects {
			p.WriteString(" " + b.value(s, r.name) + " |")
		}
		ratio, reached := b.judge(r, by[berth], by[reference])
		fmt.Fprintf(&p, " %s | %s | %s |\n", ratio, r.goal(), reached)
	}
	for _, s := range b.subjects {
		for _, name := range slices.Sorted(maps.Keys(s.failed)) {
			fmt.Fprintf(&p, "\n%s, %s: %s\n", s.name, name, s.failed[name])
		}
	}
	if len(b.leftOut) > 0 {
		fmt.Fprintf(&p, "\nLeft out after %v: %s.\n", b.budget, strings.Join(b.leftOut, "; "))
	}
	return p.String()
}

func (b *bench) value(s *subject, name string) string {
	switch m := s.median(name); {
	case m > 0:
		return fmt.Sprintf("%.0f", m.Seconds()*1000)
	case s.over[name]:
		return fmt.Sprintf("> %.0f", b.limit.Seconds()*1000)
	}
	return "–"
}

// judge gives ratio and verdict of a row. A reference that took longer than
// the limit still bounds the ratio.
func (b *bench) judge(r one, mine, other *subject) (ratio, reached string) {
	var m, o time.Duration
	bound := ""
	if mine != nil {
		m = mine.median(r.name)
	}
	if other != nil {
		if o = other.median(r.name); o == 0 && other.over[r.name] {
			o, bound = b.limit, "< "
		}
	}
	ratio = "–"
	if m > 0 && o > 0 {
		ratio = fmt.Sprintf("%s%.3f", bound, float64(m)/float64(o))
	}
	switch {
	case r.ratio == 0 && r.limit == 0:
		return ratio, ""
	case m == 0 || r.ratio > 0 && o == 0:
		return ratio, "not measured"
	case r.limit > 0 && m > r.limit:
		return ratio, "no"
	case r.ratio > 0 && float64(m) > r.ratio*float64(o):
		if bound != "" {
			return ratio, "unknown"
		}
		return ratio, "no"
	}
	return ratio, "yes"
}

func (c one) goal() string {
	var parts []string
	if c.ratio > 0 {
		parts = append(parts, fmt.Sprintf("≤ %g", c.ratio))
	}
	if c.limit > 0 {
		parts = append(parts, fmt.Sprintf("≤ %d ms", c.limit.Milliseconds()))
	}
	return strings.Join(parts, " and ")
}
