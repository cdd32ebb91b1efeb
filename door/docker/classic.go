package docker

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/build"
)

// classic tells of a build as engines without BuildKit did: one instruction
// after another, each with its number, its output and an id. Steps run side by
// side; what a later one says waits until those before it are through.
type classic struct {
	out   func(string)
	lines []*line
	steps map[string]*line // by the id of the step
	plan  map[string]*line // by how its name begins
	known bool             // the lines were known beforehand
	next  int              // the first line that is not through
}

// line is one instruction.
type line struct {
	text   string
	step   bool // it is a step of the builder
	stage  string
	begun  bool // its head was written
	output []string
	done   bool
	cached bool
	id     string
}

func newClassic(out func(string)) *classic {
	return &classic{out: out, steps: map[string]*line{}, plan: map[string]*line{}}
}

// named splits "[stage 2/3] RUN x" of a step's name.
var named = regexp.MustCompile(`(?s)^\[((?:[^\]\s]+ +)*\d+/\d+)\] (.*)$`)

func (c *classic) tell(p build.Progress) {
	for _, i := range p.Plan {
		l := &line{text: i.Text, step: i.Step != "", done: i.Step == ""}
		c.lines, c.known = append(c.lines, l), true
		if l.step {
			l.stage = i.Step[:strings.LastIndex(i.Step, " ")+1]
			c.plan[i.Step] = l
		}
	}
	for _, s := range p.Steps {
		l := c.line(s)
		if l == nil {
			continue
		}
		l.cached = l.cached || s.Cached
		if s.Completed != nil {
			l.done = true
		}
	}
	for _, o := range p.Logs {
		if l := c.steps[o.Step]; l != nil {
			l.output = append(l.output, string(o.Data))
		}
	}
	for _, w := range p.Warnings {
		c.out(" ---> [Warning] " + w + "\n")
	}
	c.write(false)
}

// line finds the instruction of a step.
func (c *classic) line(s build.Step) *line {
	if l := c.steps[s.ID]; l != nil {
		return l
	}
	m := named.FindStringSubmatch(s.Name)
	if m == nil {
		return nil
	}
	l := c.plan[strings.Join(strings.Fields(m[1]), " ")]
	if l == nil && !c.known {
		l = &line{text: m[2], step: true}
		c.lines = append(c.lines, l)
	}
	if l == nil {
		return nil
	}
	l.id = shortID(s.ID)
	c.steps[s.ID] = l
	return l
}

// write tells what can be told: all lines that are through, and of the first
// that is not what it says now.
func (c *classic) write(last bool) {
	for c.next < len(c.lines) {
		l := c.lines[c.next]
		if l.step && l.id == "" {
			if !last && !c.passed(l) {
				return // not begun
			}
			l.done, l.cached = true, true // another build has done it
		}
		if !l.begun {
			l.begun = true
			c.out(fmt.Sprintf("Step %d/%d : %s\n", c.next+1, len(c.lines), l.text))
			if l.cached {
				c.out(" ---> Using cache\n")
			}
		}
		for _, o := range l.output {
			c.out(o)
		}
		l.output = nil
		if !l.done {
			return
		}
		if l.id != "" {
			c.out(fmt.Sprintf(" ---> %s\n", l.id))
		}
		c.next++
	}
}

// passed tells whether a later step of the same stage has begun.
func (c *classic) passed(l *line) bool {
	return slices.ContainsFunc(c.lines[c.next+1:], func(o *line) bool { return o.step && o.stage == l.stage && o.id != "" })
}

// finish tells what is left. After a failure nothing follows the step that failed.
func (c *classic) finish(good bool) {
	c.write(good)
}
