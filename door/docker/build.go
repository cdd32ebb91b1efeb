package docker

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// Builder is what this door needs of a builder.
type Builder interface {
	// Serve speaks BuildKit's API on a connection until that ends.
	Serve(conn net.Conn) error
	// Session takes a client's session, described by its headers, until it ends.
	Session(ctx context.Context, conn net.Conn, h http.Header) error
	Build(ctx context.Context, r build.Request, tell func(build.Progress)) (build.Result, error)
	Cancel(id string)
	Usage(ctx context.Context) ([]build.Record, error)
	Prune(ctx context.Context, o build.PruneOptions) (ids []string, freed int64, err error)
}

// builder gives the builder, or an error where there is none.
func (d *Door) builder() (Builder, error) {
	if d.o.Build == nil {
		return nil, fault.Unsupportedf("this daemon has no builder: build elsewhere and use docker load")
	}
	return d.o.Build, nil
}

// upgrade takes a connection over for HTTP/2 without TLS.
func upgrade(w http.ResponseWriter, r *request) (net.Conn, error) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "h2c") {
		return nil, fault.Invalidf("no upgrade to h2c was asked for")
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		return nil, conn.Close()
	}
	return buffered{conn, buf.Reader}, nil
}

// buffered reads what came with the request first.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func (d *Door) grpc(w http.ResponseWriter, r *request) error {
	b, err := d.builder()
	if err != nil {
		return err
	}
	conn, err := upgrade(w, r)
	if conn == nil || err != nil {
		return err
	}
	if err := b.Serve(conn); err != nil {
		d.log.Error("builder not served", "error", err)
	}
	return nil
}

func (d *Door) session(w http.ResponseWriter, r *request) error {
	b, err := d.builder()
	if err != nil {
		return err
	}
	conn, err := upgrade(w, r)
	if conn == nil || err != nil {
		return err
	}
	if err := b.Session(context.WithoutCancel(r.Context()), conn, r.Header); err != nil {
		d.log.Debug("session of a build ended", "error", err)
	}
	return nil
}

func (d *Door) build(w http.ResponseWriter, r *request) error {
	b, err := d.builder()
	if err != nil {
		return err
	}
	req, err := buildRequest(r)
	if err != nil {
		return err
	}
	s := &buildStream{w: w, quiet: r.flag("q")}
	classic := newClassic(s.text)
	teller := func(p build.Progress) {
		if p.Begun {
			s.open()
		}
		classic.tell(p)
	}
	if req.Version == 2 {
		teller = s.trace
		s.open()
	}
	// A body that is still being read must not wait for an answer.
	_ = http.NewResponseController(w).EnableFullDuplex()
	res, err := b.Build(r.Context(), req, teller)
	classic.finish(err == nil)
	if err != nil {
		if !s.begun() {
			return err
		}
		s.fail(req, err)
		return nil
	}
	s.done(req, res)
	return nil
}

// buildRequest reads the query of a build.
func buildRequest(r *request) (build.Request, error) {
	q := r.URL.Query()
	req := build.Request{
		ID: q.Get("buildid"), Version: 1, Tags: q["t"], Dockerfile: q.Get("dockerfile"), Target: q.Get("target"), Platform: q.Get("platform"), NoCache: r.flag("nocache"),
		Pull: r.flag("pull"), Network: q.Get("networkmode"), CgroupParent: q.Get("cgroupparent"), Args: map[string]string{}, Limits: map[string]string{},
	}
	for name, list := range q {
		for _, v := range list {
			if !utf8.ValidString(v) {
				return req, fault.Invalidf("%s: %q is not valid UTF-8", name, v)
			}
		}
	}
	switch v := q.Get("version"); v {
	case "", "1":
	case "2":
		req.Version = 2
	default:
		return req, fault.Invalidf("invalid version %q", v)
	}
	if r.flag("squash") {
		return req, fault.Invalidf("squash is not supported: use a multi-stage build")
	}
	if iso := q.Get("isolation"); iso != "" && iso != "default" {
		return req, fault.Invalidf("Unsupported isolation: %q", iso)
	}
	if opts := q["securityopt"]; len(opts) > 0 {
		return req, fault.Invalidf("security options are not supported for builds (%s): use RUN --security", strings.Join(opts, ", "))
	}
	for _, t := range req.Tags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return req, fault.Invalidf("tag %q: %w", t, err)
		}
		if _, ok := named.(reference.Digested); ok {
			return req, fault.Invalidf("tag %q: build tag cannot contain a digest", t)
		}
	}
	var args map[string]*string
	var limits []struct {
		Name       string
		Soft, Hard int64
	}
	for _, p := range []struct {
		key, name string
		to        any
	}{{"ulimits", "ulimit settings", &limits}, {"buildargs", "build args", &args}, {"labels", "labels", &req.Labels}, {"cachefrom", "cachefrom", &req.CacheFrom}, {"outputs", "outputs", &req.Outputs}} {
		if text := q.Get(p.key); text != "" {
			if err := json.Unmarshal([]byte(text), p.to); err != nil {
				return req, fault.Invalidf("error reading %s: %w", p.name, err)
			}
		}
	}
	for k, v := range args {
		if v != nil {
			req.Args[k] = *v
		}
	}
	for _, u := range limits {
		req.Ulimits = append(req.Ulimits, build.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, h := range q["extrahosts"] {
		req.ExtraHosts = append(req.ExtraHosts, strings.Split(h, ",")...)
	}
	if text := q.Get("shmsize"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return req, fault.Invalidf("invalid shmsize: %w", err)
		}
		req.ShmSize = n
	}
	for _, name := range []string{"memory", "memswap", "cpushares", "cpuperiod", "cpuquota"} {
		text := q.Get(name)
		if text == "" || text == "0" {
			continue
		}
		if _, err := strconv.ParseInt(text, 10, 64); err != nil {
			return req, fault.Invalidf("invalid %s: %w", name, err)
		}
		req.Limits[name] = text
	}
	for _, name := range []string{"cpusetcpus", "cpusetmems"} {
		if text := q.Get(name); text != "" {
			req.Limits[name] = text
		}
	}
	var err error
	if req.Auth, err = registryConfig(r); err != nil {
		return req, err
	}
	switch remote := q.Get("remote"); {
	case remote == "client-session" && req.Version == 1:
		return req, fault.Invalidf("the context of a session needs version=2 (BuildKit)")
	case remote == "client-session":
		req.Session = q.Get("session")
		if req.Session == "" {
			return req, fault.Invalidf("the context of a session needs a session")
		}
	case remote != "":
		req.Remote = remote
	default:
		req.Context = r.Body
	}
	return req, nil
}

// registryConfig reads the credentials of all registries.
func registryConfig(r *request) (map[string]image.Auth, error) {
	text := r.Header.Get("X-Registry-Config")
	if text == "" {
		return nil, nil
	}
	b, err := base64.URLEncoding.DecodeString(text)
	if err != nil {
		if b, err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, fault.Invalidf("invalid X-Registry-Config header: %w", err)
		}
	}
	var all map[string]registry.AuthConfig
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fault.Invalidf("invalid X-Registry-Config header: %w", err)
	}
	out := map[string]image.Auth{}
	for host, a := range all {
		out[host] = image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress}
	}
	return out, nil
}

// maxHeld bounds the output that a quiet build keeps for the case that it
// fails, in bytes; of more than twice that the older part goes, and the client is told.
const maxHeld = 1 << 20

// buildStream sends lines of JSON.
type buildStream struct {
	quiet bool

	mu      sync.Mutex
	w       http.ResponseWriter
	started bool
	held    []byte // output of a quiet build
	lost    bool   // not all of it is held
}

func (s *buildStream) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// open answers that the build has begun: all further news are in the stream.
func (s *buildStream) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
}

func (s *buildStream) begin() {
	if s.started {
		return
	}
	s.started = true
	s.w.Header().Set("Content-Type", "application/json")
	s.w.WriteHeader(http.StatusOK)
}

func (s *buildStream) send(v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	e := json.NewEncoder(s.w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // a client that went away ends the build by its context
	_ = http.NewResponseController(s.w).Flush()
}

func (s *buildStream) text(t string) {
	if !s.quiet {
		s.send(map[string]string{"stream": t})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, t...)
	if over := len(s.held) - maxHeld; over > maxHeld {
		s.held, s.lost = append([]byte(nil), s.held[over:]...), true
	}
}

// fail ends the stream with an error. Whoever wanted a quiet build sees now what it said.
func (s *buildStream) fail(req build.Request, err error) {
	_, text := dialect(err)
	detail := map[string]any{"message": text}
	var exit *build.ExitError
	if errors.As(err, &exit) {
		detail["code"] = exit.Code
		if req.Version == 1 {
			text = fmt.Sprintf("The command '%s' returned a non-zero code: %d%s", exit.Command, exit.Code, exit.Why)
			detail["message"] = text
		}
	}
	if len(s.held) > 0 {
		if s.lost {
			s.send(map[string]string{"stream": "[earlier output is not kept in a quiet build]\n"})
		}
		s.send(map[string]string{"stream": string(s.held)})
	}
	s.send(map[string]any{"errorDetail": detail, "error": text})
}

// trace hands on what BuildKit tells, as clients with BuildKit inside read it.
func (s *buildStream) trace(p build.Progress) {
	if len(p.Raw) > 0 {
		s.send(map[string]any{"id": "moby.buildkit.trace", "aux": p.Raw})
	}
}

func (s *buildStream) done(req build.Request, res build.Result) {
	if res.ImageID != "" {
		aux := map[string]any{"aux": map[string]string{"ID": res.ImageID}}
		if req.Version == 2 {
			aux["id"] = "moby.image.id"
		}
		s.send(aux)
	}
	if req.Version == 2 {
		return
	}
	if s.quiet {
		s.send(map[string]string{"stream": res.ImageID + "\n"})
		return
	}
	if res.ImageID != "" {
		s.text(fmt.Sprintf("Successfully built %s\n", shortID(res.ImageID)))
	}
	for _, t := range req.Tags {
		if named, err := reference.ParseNormalizedNamed(t); err == nil {
			s.text(fmt.Sprintf("Successfully tagged %s\n", reference.FamiliarString(reference.TagNameOnly(named))))
		}
	}
}

// shortID is the first twelve digits of a digest.
func shortID(id string) string {
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(12, len(hex))]
}

func (d *Door) cancelBuild(w http.ResponseWriter, r *request) error {
	b, err := d.builder()
	if err != nil {
		return err
	}
	id := r.URL.Query().Get("id")
	if id == "" {
		return fault.Invalidf("build ID not provided")
	}
	b.Cancel(id)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) pruneBuild(w http.ResponseWriter, r *request) error {
	b, err := d.builder()
	if err != nil {
		return err
	}
	o := build.PruneOptions{All: r.flag("all")}
	f, err := r.filters()
	if err != nil {
		return err
	}
	for k, list := range f {
		for _, v := range list {
			switch k {
			case "until", "unused-for":
				if o.UnusedFor, err = time.ParseDuration(v); err != nil {
					return fault.Invalidf("%q is not a duration: %w", v, err)
				}
			case "id":
				o.Filters = append(o.Filters, "id~="+v)
			case "type", "parent", "description":
				o.Filters = append(o.Filters, k+"=="+v)
			case "inuse", "shared", "private":
				o.Filters = append(o.Filters, k)
			default:
				return fault.Invalidf("invalid filter %q", k)
			}
		}
	}
	for name, to := range map[string]*int64{"keep-storage": &o.ReservedSpace, "reserved-space": &o.ReservedSpace, "max-used-space": &o.MaxUsedSpace, "min-free-space": &o.MinFreeSpace} {
		if text := r.Form.Get(name); text != "" {
			if *to, err = strconv.ParseInt(text, 10, 64); err != nil {
				return fault.Invalidf("%s: %w", name, err)
			}
		}
	}
	ids, freed, err := b.Prune(r.Context(), o)
	if err != nil {
		return err
	}
	if ids == nil {
		ids = []string{}
	}
	writeJSON(w, http.StatusOK, map[string]any{"CachesDeleted": ids, "SpaceReclaimed": freed})
	return nil
}

// cacheUsage gives the builder's part of the disk usage.
func (d *Door) cacheUsage(r *request) (items []any, active int, total, free int64, err error) {
	items = []any{}
	if d.o.Build == nil {
		return items, 0, 0, 0, nil
	}
	list, err := d.o.Build.Usage(r.Context())
	for _, c := range list {
		one := map[string]any{
			"ID": c.ID, "Type": c.Type, "Description": c.Description, "InUse": c.InUse, "Shared": c.Shared, "Size": c.Size,
			"CreatedAt": c.Created.Format(time.RFC3339Nano), "LastUsedAt": c.LastUsed, "UsageCount": c.Uses, "Parents": c.Parents,
		}
		items = append(items, one)
		total += c.Size
		switch {
		case c.InUse:
			active++
		case !c.Shared:
			free += c.Size
		}
	}
	return items, active, total, free, err
}
