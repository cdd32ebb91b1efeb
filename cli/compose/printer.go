package compose

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// The longest line that is kept together; a longer one is cut there.
const longestLine = 1 << 20

// printer writes lines of several containers, each behind its name.
type printer struct {
	out       io.Writer
	color     bool
	prefix    bool
	timestamp bool // put the present time before each line

	mu    sync.Mutex
	width int
	seen  map[string]string // name → colour
	next  int
}

var palette = []string{"36", "33", "32", "35", "34", "36;1", "33;1", "32;1", "35;1", "34;1"}

func newPrinter(out io.Writer, color, prefix, timestamp bool) *printer {
	return &printer{out: out, color: color, prefix: prefix, timestamp: timestamp, seen: map[string]string{}}
}

// register makes room for a name before its first line; mu is held by callers within.
func (p *printer) register(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		p.meet(n)
	}
}

func (p *printer) meet(name string) string {
	color, ok := p.seen[name]
	if !ok {
		color = palette[p.next%len(palette)]
		p.next++
		p.seen[name] = color
		p.width = max(p.width, len(name)+1)
	}
	return color
}

// line writes one line of a container's output.
func (p *printer) line(name, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	color := p.meet(name)
	var b strings.Builder
	if p.prefix {
		b.WriteString(p.painted(color, fmt.Sprintf("%-*s | ", p.width, name)))
	}
	if p.timestamp {
		b.WriteString(time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " ")
	}
	b.WriteString(text + "\n")
	_, _ = io.WriteString(p.out, b.String())
}

// status writes what happened to a container.
func (p *printer) status(name, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = io.WriteString(p.out, p.painted(p.meet(name), name+" "+text+"\n"))
}

func (p *printer) painted(color, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// lines is a writer that gives whole lines to emit. close gives the last one.
type lines struct {
	emit func(string)
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	n := len(b)
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		l.emit(strings.TrimSuffix(string(append(l.rest, b[:i]...)), "\r"))
		l.rest, b = l.rest[:0], b[i+1:]
	}
	l.rest = append(l.rest, b...)
	if len(l.rest) > longestLine {
		l.close()
	}
	return n, nil
}

func (l *lines) close() {
	if len(l.rest) > 0 {
		l.emit(string(l.rest))
		l.rest = l.rest[:0]
	}
}
