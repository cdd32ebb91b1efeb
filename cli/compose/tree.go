package compose

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/berth-project/berth/lib/prose"
)

// How often the tree is painted while something works.
const repaint = 100 * time.Millisecond

// tree is progress on a terminal: one row a resource, painted again in place.
// It asks for the terminal's size at each painting, so that a change of it
// does no harm.
type tree struct {
	out    io.Writer
	color  bool
	dryRun bool

	mu      sync.Mutex
	verb    string
	rows    []*row
	byID    map[string]*row
	painted int // lines of the last painting
	frame   int
	stop    chan struct{}
	stopped chan struct{}
}

type row struct {
	event
	started time.Time
	ended   time.Time // zero while it works
	parts   map[string]event
}

func newTree(out io.Writer, color, dryRun bool) *tree {
	return &tree{out: out, color: color, dryRun: dryRun}
}

func (t *tree) begin(verb string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stop != nil {
		return // an operation within an operation
	}
	t.verb, t.rows, t.byID, t.painted = verb, nil, map[string]*row{}, 0
	t.stop, t.stopped = make(chan struct{}), make(chan struct{})
	fmt.Fprint(t.out, "\x1b[?25l") // hide the cursor
	go t.paintUntil(t.stop, t.stopped)
}

func (t *tree) paintUntil(stop, stopped chan struct{}) {
	defer close(stopped)
	tick := time.NewTicker(repaint)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			t.mu.Lock()
			t.frame++
			t.paint()
			t.mu.Unlock()
		}
	}
}

func (t *tree) end(bool) {
	t.mu.Lock()
	if t.stop == nil {
		t.mu.Unlock()
		return
	}
	close(t.stop)
	stopped := t.stopped
	t.mu.Unlock()
	<-stopped
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop = nil
	t.paint()
	fmt.Fprint(t.out, "\x1b[?25h")
}

func (t *tree) on(e event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID = map[string]*row{}
	}
	if e.parent != "" {
		if r := t.byID[e.parent]; r != nil {
			if r.parts == nil {
				r.parts = map[string]event{}
			}
			r.parts[e.id] = e
			return
		}
	}
	r := t.byID[e.id]
	if r == nil {
		r = &row{started: cmp.Or(e.since, time.Now())}
		t.byID[e.id], t.rows = r, append(t.rows, r)
	}
	r.event = e
	if e.state == working {
		r.ended = time.Time{}
	} else {
		r.ended = time.Now()
	}
}

// paint writes the rows over those of the last painting; mu is held.
func (t *tree) paint() {
	if len(t.rows) == 0 {
		return
	}
	width, height := size(t.out)
	complete := 0
	for _, r := range t.rows {
		if r.state != working {
			complete++
		}
	}
	var b strings.Builder
	if t.painted > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", t.painted)
	}
	head := fmt.Sprintf("[+] %s %d/%d", t.verb, complete, len(t.rows))
	if t.dryRun {
		head = "DRY-RUN MODE - " + head
	}
	lines := []string{t.paintedIn("36", prose.Clip(head, width))}
	shown, hidden := t.visible(height - 2)
	longest := 0
	for _, r := range shown {
		longest = max(longest, utf8.RuneCountInString(r.id))
	}
	for _, r := range shown {
		lines = append(lines, t.line(r, min(longest, max(20, width-30)), width))
	}
	if hidden > 0 {
		lines = append(lines, prose.Clip(fmt.Sprintf("   … %d more", hidden), width))
	}
	for _, l := range lines {
		b.WriteString("\r" + l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	t.painted = len(lines)
	_, _ = io.WriteString(t.out, b.String())
}

// visible chooses rows for a screen of limited height: what works or failed
// first, in the order in which it began.
func (t *tree) visible(limit int) (shown []*row, hidden int) {
	limit = max(limit, 3)
	if len(t.rows) <= limit || t.stop == nil { // the last painting shows all
		return t.rows, 0
	}
	for _, r := range t.rows {
		if r.state != done && len(shown) < limit-1 {
			shown = append(shown, r)
		}
	}
	for i := len(t.rows) - 1; i >= 0 && len(shown) < limit-1; i-- {
		if t.rows[i].state == done {
			shown = append(shown, t.rows[i])
		}
	}
	return shown, len(t.rows) - len(shown)
}

var spinner = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

func (t *tree) line(r *row, names, width int) string {
	mark, code := spinner[t.frame%len(spinner)], "33"
	end := time.Now()
	switch r.state {
	case done:
		mark, code, end = "✔", "32", r.ended
	case warned:
		mark, code, end = "!", "33", r.ended
	case failed:
		mark, code, end = "✘", "31", r.ended
	}
	text := r.text
	if r.state == working {
		if current, total := r.bytes(); total > 0 {
			text += fmt.Sprintf(" %s / %s %d%%", units.HumanSize(float64(current)), units.HumanSize(float64(total)), percent(current, total))
		}
	}
	if r.details != "" {
		text += " " + r.details
	}
	seconds := fmt.Sprintf("%.1fs", end.Sub(r.started).Seconds())
	left := prose.Clip(fmt.Sprintf("%s %-*s  %s", mark, names, prose.Clip(r.id, names), text), width-len(seconds)-3)
	gap := max(1, width-2-utf8.RuneCountInString(left)-len(seconds))
	rest := strings.TrimPrefix(left, mark)
	if i := strings.LastIndex(rest, text); i >= 0 && text != "" {
		rest = rest[:i] + t.paintedIn(code, text) + rest[i+len(text):]
	}
	return " " + t.paintedIn(code, mark) + rest + strings.Repeat(" ", gap) + t.paintedIn("34", seconds)
}

// bytes sums up the parts of a row, or its own.
func (r *row) bytes() (current, total int64) {
	current, total = r.current, r.total
	for _, p := range r.parts {
		if p.state == done {
			p.current = p.total
		}
		current, total = current+p.current, total+p.total
	}
	return current, total
}

func (t *tree) paintedIn(code, text string) string {
	if !t.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// size is the terminal's width and height, or 80 × 24 where it has none.
func size(out io.Writer) (width, height int) {
	if f, ok := out.(interface{ FD() uintptr }); ok {
		if w, h, err := term.GetSize(int(f.FD())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}
