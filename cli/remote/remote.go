// Package remote speaks the daemon's native API (docs/design/app.md and, of
// cache mounts, docs/design/build.md): one method for each operation. It knows
// HTTP and the structs of the core, and nothing of screens.
package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/berth-project/berth/core/app"
)

// Dialer opens a connection to the daemon, as the Docker client's Dialer() does.
type Dialer func(ctx context.Context) (net.Conn, error)

// Client of one daemon.
type Client struct {
	http *http.Client
}

// New makes a client of the daemon that dial reaches.
func New(dial Dialer) *Client {
	return &Client{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}}
}

// ErrNoBerth is given where the daemon does not know the native API: it is not Berth's.
var ErrNoBerth = errors.New("the daemon is not Berth's: it has no API for applications (start berthd, or set BERTH_HOST)")

// Error is a refusal of the daemon.
type Error struct {
	Status int // of HTTP
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Close lets idle connections go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Watch takes the lines of an operation as they come. Its error ends the
// reading, not the operation.
type Watch func(app.Progress) error

// Plan tells what Apply would do.
func (c *Client) Plan(ctx context.Context, r app.ApplyRequest) (p app.Plan, err error) {
	return p, c.call(ctx, http.MethodPost, path(r.Document.Name, "plan"), r, &p)
}

// Apply makes the application what the document says. The operation goes on
// when the client leaves; Cancel ends it.
func (c *Client) Apply(ctx context.Context, r app.ApplyRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(r.Document.Name, "apply"), r, w)
}

// Pull fetches the images of services; Policy.Services, Policy.NoDeps and Policy.Pull count.
func (c *Client) Pull(ctx context.Context, r app.ApplyRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(r.Document.Name, "pull"), r, w)
}

// Run makes a one-off container (Result.Container), ready to be attached to and started.
func (c *Client) Run(ctx context.Context, r app.RunRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(r.Document.Name, "run"), r, w)
}

// Down removes an application.
func (c *Client) Down(ctx context.Context, name string, r app.DownRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(name, "down"), r, w)
}

// Act does one thing to containers that are there: start, stop, restart, pause, unpause, kill, rm.
func (c *Client) Act(ctx context.Context, name, verb string, r app.ActRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(name, verb), r, w)
}

// Scale sets numbers of containers.
func (c *Client) Scale(ctx context.Context, name string, r app.ScaleRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(name, "scale"), r, w)
}

// Rollback applies an earlier revision.
func (c *Client) Rollback(ctx context.Context, name string, r app.RollbackRequest, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodPost, path(name, "rollback"), r, w)
}

// List gives all applications.
func (c *Client) List(ctx context.Context) (list []app.Summary, err error) {
	return list, c.call(ctx, http.MethodGet, "/berth/v1/apps", nil, &list)
}

// Inspect gives one, what is wanted and what is there.
func (c *Client) Inspect(ctx context.Context, name string) (d app.Details, err error) {
	return d, c.call(ctx, http.MethodGet, path(name, ""), nil, &d)
}

// History gives its revisions, latest first; with their documents if asked for.
func (c *Client) History(ctx context.Context, name string, documents bool) (list []app.Revision, err error) {
	p := path(name, "history")
	if documents {
		p += "?document=1"
	}
	return list, c.call(ctx, http.MethodGet, p, nil, &list)
}

// RunJob runs a job now.
func (c *Client) RunJob(ctx context.Context, name, job string) error {
	return c.call(ctx, http.MethodPost, path(name, "jobs/"+url.PathEscape(job)+"/run"), nil, nil)
}

// Events gives what happens to an application until ctx ends or emit fails.
func (c *Client) Events(ctx context.Context, name string, emit func(app.Happening) error) error {
	return lines(ctx, c, http.MethodGet, path(name, "events"), nil, emit)
}

// Operations gives what is under way and lately ended.
func (c *Client) Operations(ctx context.Context) (list []app.Operation, err error) {
	return list, c.call(ctx, http.MethodGet, "/berth/v1/operations", nil, &list)
}

// Follow gives an operation's lines after the given number, until it ends.
func (c *Client) Follow(ctx context.Context, operation string, after int, w Watch) (app.Result, error) {
	return c.stream(ctx, http.MethodGet, "/berth/v1/operations/"+url.PathEscape(operation)+"/progress?after="+strconv.Itoa(after), nil, w)
}

// Cancel ends an operation after the steps that are under way.
func (c *Client) Cancel(ctx context.Context, operation string) error {
	return c.call(ctx, http.MethodDelete, "/berth/v1/operations/"+url.PathEscape(operation), nil, nil)
}

func path(name, verb string) string {
	p := "/berth/v1/apps/" + url.PathEscape(name)
	if verb != "" {
		p += "/" + verb
	}
	return p
}

func (c *Client) stream(ctx context.Context, method, path string, body any, w Watch) (app.Result, error) {
	var result *app.Result
	err := lines(ctx, c, method, path, body, func(p app.Progress) error {
		if p.Result != nil {
			result = p.Result
		}
		if w == nil {
			return nil
		}
		return w(p)
	})
	switch {
	case err != nil:
		return app.Result{}, err
	case result == nil:
		return app.Result{}, errors.New("the daemon went away before the work was done: it goes on when the daemon is back (see `berth compose ls`)")
	case result.Error != "":
		return *result, errors.New(result.Error)
	}
	return *result, nil
}

// lines reads an answer that is one JSON value a line.
func lines[T any](ctx context.Context, c *Client, method, path string, body any, emit func(T) error) error {
	answer, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	dec := json.NewDecoder(answer.Body)
	for {
		var v T
		if err := dec.Decode(&v); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // the caller sees whether the last word was said
		} else if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		if err := emit(v); err != nil {
			return err
		}
	}
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	answer, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if into == nil {
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	return c.do(ctx, method, path, "application/json", r)
}

// do sends a body, if there is one, and gives the answer unless it is a refusal.
func (c *Client) do(ctx context.Context, method, path, kind string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://berth"+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", kind)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	var refusal struct{ Message string }
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &refusal); err != nil || refusal.Message == "" {
		refusal.Message = strings.TrimSpace(string(text))
	}
	if answer.StatusCode == http.StatusNotFound && (refusal.Message == "" || refusal.Message == "page not found") {
		return nil, ErrNoBerth
	}
	return nil, &Error{answer.StatusCode, refusal.Message}
}
