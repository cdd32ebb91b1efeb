package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// How a row of progress stands.
type state int

const (
	working state = iota
	done
	warned
	failed
)

func (s state) String() string { return [...]string{"Working", "Done", "Warning", "Error"}[s] }

// event is one word of progress about one resource.
type event struct {
	id      string // "Container shop-web-1"
	parent  string // id of the row that this one is a part of: a layer of an image
	state   state
	text    string // "Started"
	details string
	current int64 // bytes
	total   int64
	since   time.Time // when it began; zero is now
}

// screen shows progress. begin and end enclose one operation.
type screen interface {
	begin(verb string)
	on(event)
	end(ok bool)
}

// chooseScreen decides by --progress, --ansi, NO_COLOR and the terminal.
func (t *tool) chooseScreen() error {
	t.color = t.ansi == "always" || t.ansi == "auto" && t.docker.Out().IsTerminal()
	if os.Getenv("NO_COLOR") != "" {
		t.color = false
	}
	out := io.Writer(t.docker.Err())
	if truth(os.Getenv("COMPOSE_STATUS_STDOUT")) {
		out = t.docker.Out()
	}
	switch t.progress {
	case "", "auto":
		t.mode = "plain"
		if t.ansi != "never" && t.docker.Err().IsTerminal() {
			t.mode = "tty"
		}
	case "tty":
		if t.ansi == "never" {
			return errors.New("can't use --progress tty while ANSI support is disabled")
		}
		t.mode = "tty"
	case "plain":
		if t.ansi == "always" {
			return errors.New("can't use --progress plain while ANSI support is forced")
		}
		t.mode = "plain"
	case "quiet", "none":
		t.mode = "quiet"
	case "json":
		t.mode = "json"
	default:
		return fmt.Errorf("unsupported --progress value %q: use auto, tty, plain, json or quiet", t.progress)
	}
	switch t.mode {
	case "tty":
		t.screen = newTree(out, os.Getenv("NO_COLOR") == "", t.dryRun)
	case "plain":
		t.screen = &plain{out: t.docker.Err(), dryRun: t.dryRun}
	case "json":
		t.screen = &jsonLines{out: t.docker.Err(), dryRun: t.dryRun}
	default:
		t.screen = quiet{}
	}
	return nil
}

// quiet shows nothing.
type quiet struct{}

func (quiet) begin(string) {}
func (quiet) on(event)     {}
func (quiet) end(bool)     {}

// plain writes a line for each event, as docker compose does.
type plain struct {
	mu     sync.Mutex
	out    io.Writer
	dryRun bool
}

func (p *plain) begin(string) {}
func (p *plain) end(bool)     {}

func (p *plain) on(e event) {
	if e.parent != "" && e.state == working && e.total > 0 {
		return // bytes of a layer are for those who watch
	}
	prefix := ""
	if p.dryRun {
		prefix = " DRY-RUN MODE - "
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.out, prefix, e.id, e.text, e.details)
}

// jsonLines writes an object for each event.
type jsonLines struct {
	mu     sync.Mutex
	out    io.Writer
	dryRun bool
}

func (j *jsonLines) begin(string) {}
func (j *jsonLines) end(bool)     {}

func (j *jsonLines) on(e event) {
	line := struct {
		DryRun  bool   `json:"dry-run,omitempty"`
		ID      string `json:"id,omitempty"`
		Parent  string `json:"parent_id,omitempty"`
		Status  string `json:"status,omitempty"`
		Text    string `json:"text,omitempty"`
		Details string `json:"details,omitempty"`
		Current int64  `json:"current,omitempty"`
		Total   int64  `json:"total,omitempty"`
		Percent int    `json:"percent,omitempty"`
	}{j.dryRun, e.id, e.parent, e.state.String(), e.text, e.details, e.current, e.total, percent(e.current, e.total)}
	j.mu.Lock()
	defer j.mu.Unlock()
	_ = json.NewEncoder(j.out).Encode(line)
}

func percent(current, total int64) int {
	if total <= 0 {
		return 0
	}
	return int(min(100, current*100/total))
}
