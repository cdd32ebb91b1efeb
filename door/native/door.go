// Package native is the door for Berth's own clients: applications, operations
// (docs/design/app.md) and cache mounts (docs/design/build.md) over HTTP. It
// decides nothing.
package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/lib/fault"
)

// Prefix of all paths of this door.
const Prefix = "/berth/"

const maxBody = 64 << 20 // bytes: ten thousand services

// Apps is what this door needs of the core.
type Apps interface {
	List(ctx context.Context) ([]app.Summary, error)
	Inspect(ctx context.Context, name string) (app.Details, error)
	Plan(ctx context.Context, r app.ApplyRequest) (app.Plan, error)
	Apply(ctx context.Context, r app.ApplyRequest) (operation string, err error)
	Pull(ctx context.Context, r app.ApplyRequest) (operation string, err error)
	Run(ctx context.Context, r app.RunRequest) (operation string, err error)
	Down(ctx context.Context, name string, r app.DownRequest) (operation string, err error)
	Act(ctx context.Context, name, verb string, r app.ActRequest) (operation string, err error)
	Scale(ctx context.Context, name string, r app.ScaleRequest) (operation string, err error)
	Rollback(ctx context.Context, name string, r app.RollbackRequest) (operation string, err error)
	History(ctx context.Context, name string, documents bool) ([]app.Revision, error)
	RunJob(ctx context.Context, name, job string) error
	Operations() []app.Operation
	Follow(ctx context.Context, operation string, after int, emit func(app.Progress) error) error
	Cancel(operation string) error
}

// Mounts are the builder's cache mounts.
type Mounts interface {
	CacheMounts(ctx context.Context) ([]build.CacheMount, error)
	ExportMounts(ctx context.Context, ids []string) (build.MountArchive, error)
	ImportMounts(ctx context.Context, archive io.Reader, o build.MountImport) ([]build.CacheMount, error)
}

// Events is the daemon's bus.
type Events interface {
	Subscribe(ctx context.Context, since time.Time) ([]event.Event, <-chan event.Event)
}

// Options of a Door. All are needed.
type Options struct {
	Apps   Apps
	Mounts Mounts
	Events Events
	Logger *slog.Logger
	Done   context.Context // ends streams when the daemon stops
}

// Door is the http.Handler of the native API.
type Door struct {
	o   Options
	mux *http.ServeMux
}

// handler answers; what it returns is worded by fail.
type handler func(w http.ResponseWriter, r *http.Request) error

// New builds the route table.
func New(o Options) *Door {
	d := &Door{o: o, mux: http.NewServeMux()}
	for pattern, h := range map[string]handler{
		"GET /berth/v1/apps":                            d.list,
		"GET /berth/v1/apps/{app}":                      d.inspect,
		"POST /berth/v1/apps/{app}/plan":                d.plan,
		"POST /berth/v1/apps/{app}/apply":               d.document(d.o.Apps.Apply),
		"POST /berth/v1/apps/{app}/pull":                d.document(d.o.Apps.Pull),
		"POST /berth/v1/apps/{app}/run":                 d.run,
		"POST /berth/v1/apps/{app}/down":                named(d, d.o.Apps.Down),
		"POST /berth/v1/apps/{app}/scale":               named(d, d.o.Apps.Scale),
		"POST /berth/v1/apps/{app}/rollback":            named(d, d.o.Apps.Rollback),
		"POST /berth/v1/apps/{app}/start":               d.act("start"),
		"POST /berth/v1/apps/{app}/stop":                d.act("stop"),
		"POST /berth/v1/apps/{app}/restart":             d.act("restart"),
		"POST /berth/v1/apps/{app}/pause":               d.act("pause"),
		"POST /berth/v1/apps/{app}/unpause":             d.act("unpause"),
		"POST /berth/v1/apps/{app}/kill":                d.act("kill"),
		"POST /berth/v1/apps/{app}/rm":                  d.act("rm"),
		"GET /berth/v1/apps/{app}/history":              d.history,
		"GET /berth/v1/apps/{app}/events":               d.events,
		"POST /berth/v1/apps/{app}/jobs/{job}/run":      d.job,
		"GET /berth/v1/builder/mounts":                  d.mounts,
		"GET /berth/v1/builder/mounts/archive":          d.exportMounts,
		"POST /berth/v1/builder/mounts/archive":         d.importMounts,
		"GET /berth/v1/operations":                      d.operations,
		"GET /berth/v1/operations/{operation}/progress": d.progress,
		"DELETE /berth/v1/operations/{operation}":       d.cancel,
	} {
		d.mux.Handle(pattern, d.wrap(h))
	}
	d.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusNotFound, "page not found") })
	return d
}

func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.mux.ServeHTTP(w, r) }

func (d *Door) wrap(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				d.o.Logger.Error("request failed", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				refuse(w, http.StatusInternalServerError, "internal error: see the daemon's log")
			}
		}()
		if err := h(w, r); err != nil {
			d.fail(w, r, err)
		}
	})
}

// fail answers with an error.
func (d *Door) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if status >= 500 {
		d.o.Logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	refuse(w, status, err.Error())
}

// statusOf gives the status of an error's class.
func statusOf(err error) int {
	for _, c := range []struct {
		class  error
		status int
	}{
		{fault.ErrInvalid, http.StatusBadRequest}, {fault.ErrNotFound, http.StatusNotFound}, {fault.ErrConflict, http.StatusConflict}, {fault.ErrExists, http.StatusConflict},
		{fault.ErrPermission, http.StatusForbidden}, {fault.ErrUnauthenticated, http.StatusUnauthorized}, {fault.ErrUnsupported, http.StatusNotImplemented}, {fault.ErrUnavailable, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, c.class) {
			return c.status
		}
	}
	return http.StatusInternalServerError
}

func refuse(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]string{"message": text})
}

// answer cannot tell the client of a failure any more: the header is out.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

// decode reads a body of bounded size, one JSON value; an empty one leaves v.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	err := dec.Decode(v)
	var big *http.MaxBytesError
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &big):
		return fault.Invalidf("the request's body exceeds %d bytes", maxBody)
	case err != nil:
		return fault.Invalidf("invalid JSON: %w", err)
	case dec.More():
		return fault.Invalidf("unexpected content after JSON")
	}
	return nil
}

// lines begins an answer of one JSON value a line.
func (d *Door) lines(w http.ResponseWriter, r *http.Request) (context.Context, func(any) error, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(d.o.Done, cancel)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	_ = out.Flush()
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return ctx, func(v any) error {
		if err := e.Encode(v); err != nil {
			return err
		}
		return out.Flush()
	}, func() { stop(); cancel() }
}

// follow streams an operation. That the client leaves is no error.
func (d *Door) follow(w http.ResponseWriter, r *http.Request, operation string, after int) {
	w.Header().Set("Berth-Operation", operation)
	ctx, emit, done := d.lines(w, r)
	defer done()
	err := d.o.Apps.Follow(ctx, operation, after, func(p app.Progress) error { return emit(p) })
	if err != nil && ctx.Err() == nil {
		d.o.Logger.Debug("progress not sent", "operation", operation, "error", err)
	}
}

func (d *Door) list(w http.ResponseWriter, r *http.Request) error {
	list, err := d.o.Apps.List(r.Context())
	if err == nil {
		answer(w, http.StatusOK, list)
	}
	return err
}

func (d *Door) inspect(w http.ResponseWriter, r *http.Request) error {
	v, err := d.o.Apps.Inspect(r.Context(), r.PathValue("app"))
	if err == nil {
		answer(w, http.StatusOK, v)
	}
	return err
}

// body reads a request with a document, which must be of the application of the path.
func body(w http.ResponseWriter, r *http.Request) (q app.ApplyRequest, err error) {
	if err := decode(w, r, &q); err != nil {
		return q, err
	}
	if q.Document.Name != r.PathValue("app") {
		return q, fault.Invalidf("the document is of %q, the path of %q", q.Document.Name, r.PathValue("app"))
	}
	return q, nil
}

func (d *Door) plan(w http.ResponseWriter, r *http.Request) error {
	q, err := body(w, r)
	if err != nil {
		return err
	}
	p, err := d.o.Apps.Plan(r.Context(), q)
	if err != nil {
		return err
	}
	if r.URL.Query().Get("format") == "text" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, err = io.WriteString(w, p.String())
		return err
	}
	answer(w, http.StatusOK, p)
	return nil
}

func (d *Door) document(begin func(context.Context, app.ApplyRequest) (string, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		q, err := body(w, r)
		if err != nil {
			return err
		}
		id, err := begin(r.Context(), q)
		if err == nil {
			d.follow(w, r, id, 0)
		}
		return err
	}
}

func (d *Door) run(w http.ResponseWriter, r *http.Request) error {
	var q app.RunRequest
	if err := decode(w, r, &q); err != nil {
		return err
	}
	if q.Document.Name != r.PathValue("app") {
		return fault.Invalidf("the document is of %q, the path of %q", q.Document.Name, r.PathValue("app"))
	}
	id, err := d.o.Apps.Run(r.Context(), q)
	if err == nil {
		d.follow(w, r, id, 0)
	}
	return err
}

// named serves what begins an operation of the application in the path.
func named[T any](d *Door, begin func(ctx context.Context, name string, q T) (string, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		var q T
		if err := decode(w, r, &q); err != nil {
			return err
		}
		id, err := begin(r.Context(), r.PathValue("app"), q)
		if err == nil {
			d.follow(w, r, id, 0)
		}
		return err
	}
}

func (d *Door) act(verb string) handler {
	return named(d, func(ctx context.Context, name string, q app.ActRequest) (string, error) {
		return d.o.Apps.Act(ctx, name, verb, q)
	})
}

func (d *Door) history(w http.ResponseWriter, r *http.Request) error {
	list, err := d.o.Apps.History(r.Context(), r.PathValue("app"), r.URL.Query().Get("document") == "1")
	if err == nil {
		answer(w, http.StatusOK, list)
	}
	return err
}

func (d *Door) job(w http.ResponseWriter, r *http.Request) error {
	err := d.o.Apps.RunJob(r.Context(), r.PathValue("app"), r.PathValue("job"))
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (d *Door) operations(w http.ResponseWriter, _ *http.Request) error {
	answer(w, http.StatusOK, d.o.Apps.Operations())
	return nil
}

func (d *Door) progress(w http.ResponseWriter, r *http.Request) error {
	after := 0
	if text := r.URL.Query().Get("after"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return fault.Invalidf("after: %q is no number of a line", text)
		}
		after = n
	}
	id := r.PathValue("operation")
	for _, o := range d.o.Apps.Operations() {
		if o.ID == id {
			d.follow(w, r, id, after)
			return nil
		}
	}
	return fault.NotFoundf("no such operation: %s", id)
}

func (d *Door) cancel(w http.ResponseWriter, r *http.Request) error {
	err := d.o.Apps.Cancel(r.PathValue("operation"))
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// events tells what happens to the parts of one application.
func (d *Door) events(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("app")
	ctx, emit, done := d.lines(w, r)
	defer done()
	_, events := d.o.Events.Subscribe(ctx, time.Time{})
	for e := range events {
		if e.Attributes[app.LabelApp] != name {
			continue
		}
		h := app.Happening{Time: e.Time, Kind: app.Kind(e.Type), Action: e.Action, ID: e.ID, Service: e.Attributes[app.LabelService], Attributes: e.Attributes}
		if err := emit(h); err != nil {
			break
		}
	}
	return nil
}
