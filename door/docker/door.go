package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/lib/fault"
)

// Versions of the API that are served, 1.minVersion to 1.maxVersion.
const (
	minVersion = 24
	maxVersion = 56
)

// maxBody bounds a request that is decoded whole, in bytes.
const maxBody = 8 << 20

// Options of a Door. All services are needed.
type Options struct {
	Containers Containers
	Images     Images
	Networks   Networks
	Volumes    Volumes
	System     System
	Events     Events
	Logger     *slog.Logger
	Build      Builder // nil where there is none
}

// Door is the http.Handler of the Docker Engine API.
type Door struct {
	o   Options
	log *slog.Logger
	mux *http.ServeMux
}

// handler answers one operation; its error is worded by dialect.go.
type handler func(w http.ResponseWriter, r *request) error

// request is one with its API version ("1." + version).
type request struct {
	*http.Request
	version int
}

// New builds the route table.
func New(o Options) (*Door, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Door{o: o, log: o.Logger, mux: http.NewServeMux()}
	for _, r := range d.routes() {
		if r.method == http.MethodGet || r.method == http.MethodDelete {
			r.handle = alone(r.handle)
		}
		d.mux.Handle(r.method+" "+r.pattern, d.wrap(r))
	}
	d.mux.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusNotFound, "page not found")
	}))
	return d, nil
}

type route struct {
	method, pattern string
	handle          handler
	since           int // first version that has it
}

// ServeHTTP takes the version off the path and finds the route.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			d.log.Error("request failed", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			writeError(w, http.StatusInternalServerError, "internal error: see the daemon's log")
		}
	}()
	version := maxVersion
	if path, ok := strings.CutPrefix(r.URL.Path, "/v1."); ok {
		number, rest, _ := strings.Cut(path, "/")
		if n, err := strconv.Atoi(number); err == nil {
			if n < minVersion {
				writeError(w, http.StatusBadRequest, fmt.Sprintf("client version 1.%d is too old. Minimum supported API version is 1.%d, please upgrade your client to a newer version", n, minVersion))
				return
			}
			if n > maxVersion {
				writeError(w, http.StatusBadRequest, fmt.Sprintf("client version 1.%d is too new. Maximum supported API version is 1.%d", n, maxVersion))
				return
			}
			version = n
			r2 := r.Clone(r.Context())
			r2.URL.Path = "/" + rest
			r2.URL.RawPath = ""
			r = r2
		}
	}
	h := w.Header()
	h.Set("Api-Version", fmt.Sprintf("1.%d", maxVersion))
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "Berth/"+d.o.System.Version().Berth+" (linux)")
	r.Header.Set("X-Berth-Api", strconv.Itoa(version))
	// The mux would redirect "//" and "..": such a path is no operation here.
	_, pattern := d.mux.Handler(r)
	if pattern == "" || strings.Contains(r.URL.Path, "//") {
		writeError(w, http.StatusNotFound, "page not found")
		return
	}
	d.mux.ServeHTTP(w, r)
}

func (d *Door) wrap(route route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		version, _ := strconv.Atoi(r.Header.Get("X-Berth-Api"))
		if version < route.since {
			writeError(w, http.StatusNotFound, "page not found")
			return
		}
		if err := r.ParseForm(); err != nil && r.Header.Get("Content-Type") != "application/json" {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		err := route.handle(w, &request{Request: r, version: version})
		if err == nil {
			return
		}
		status, text := dialect(err)
		if status >= 500 {
			d.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		} else {
			d.log.Debug("request refused", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		if status == http.StatusNotModified {
			w.WriteHeader(status)
			return
		}
		writeError(w, status, text)
	})
}

func writeError(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"message": text})
}

// writeJSON cannot tell the client of a failure any more: the header is out.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

// decode reads a JSON body of bounded size into v. An empty body leaves v.
func decode(r *request, v any) error {
	if r.ContentLength == 0 || r.Body == nil {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil && r.Header.Get("Content-Type") != "" {
		return fault.Invalidf("malformed Content-Type header (%s): %w", r.Header.Get("Content-Type"), err)
	}
	if kind != "application/json" && r.Header.Get("Content-Type") != "" {
		return fault.Invalidf("unsupported Content-Type header (%s): must be 'application/json'", kind)
	}
	dec := json.NewDecoder(io.LimitReader(r.Body, maxBody+1))
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		if dec.InputOffset() > maxBody {
			return fault.Invalidf("the request's body exceeds %d bytes", maxBody)
		}
		return fault.Invalidf("invalid JSON: %w", err)
	}
	if dec.More() {
		return fault.Invalidf("unexpected content after JSON")
	}
	return nil
}

// alone is for operations that take no body: net/http watches whether a client
// is still there only once its body has been read.
func alone(next handler) handler {
	return func(w http.ResponseWriter, r *request) error {
		if err := r.discard(); err != nil {
			return err
		}
		return next(w, r)
	}
}

func (r *request) discard() error {
	n, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return fault.Invalidf("read the request's body: %w", err)
	}
	if n > maxBody {
		return fault.Invalidf("the request's body exceeds %d bytes", maxBody)
	}
	return nil
}

// flag reads a boolean of the query as docker does.
func (r *request) flag(name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.Form.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

func (r *request) flagOr(name string, otherwise bool) bool {
	if _, ok := r.Form[name]; !ok {
		return otherwise
	}
	return r.flag(name)
}

func (r *request) number(name string, otherwise int) (int, error) {
	v := r.Form.Get(name)
	if v == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fault.Invalidf("invalid value for %s: %w", name, err)
	}
	return n, nil
}

// filters reads both shapes: {"a":["x"]} and {"a":{"x":true}}.
func (r *request) filters() (filter.Args, error) {
	text := r.Form.Get("filters")
	args := filter.Args{}
	if text == "" {
		return args, nil
	}
	var list map[string][]string
	if err := json.Unmarshal([]byte(text), &list); err == nil {
		return list, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(text), &sets); err != nil {
		return nil, fault.Invalidf("invalid filter: %w", err)
	}
	for name, set := range sets {
		for v, on := range set {
			if on {
				args[name] = append(args[name], v)
			}
		}
	}
	return args, nil
}
