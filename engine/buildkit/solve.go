package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/redact"
)

// dial connects to the builder within this process.
func (b *Builder) dial(context.Context, string) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		if err := b.Serve(far); err != nil {
			b.log.Error("builder not served", "error", err)
		}
	}()
	return near, nil
}

// client speaks to the builder as one from outside would.
func (b *Builder) client(ctx context.Context) (*client.Client, error) {
	if _, err := b.start(); err != nil {
		return nil, err
	}
	return client.New(ctx, "", client.WithContextDialer(b.dial), client.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage))))
}

// Build makes what a request asks for and tells of it as it goes on.
func (b *Builder) Build(ctx context.Context, r build.Request, tell func(build.Progress)) (build.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.ID != "" {
		if err := b.enter(r.ID, cancel); err != nil {
			return build.Result{}, err
		}
		defer b.leave(r.ID)
	}
	c, err := b.client(ctx)
	if err != nil {
		return build.Result{}, err
	}
	defer c.Close()
	req, err := b.request(r)
	if err != nil {
		return build.Result{}, err
	}
	begun := false
	if r.Context != nil {
		spool, err := b.spool(r.Context)
		if err != nil {
			return build.Result{}, err
		}
		defer spool.Close()
		list, ok, err := plan(ctx, spool, r)
		if err != nil {
			return build.Result{}, err
		}
		if begun = ok; begun {
			tell(build.Progress{Begun: true, Plan: list})
		}
		if r.Context, err = archive(spool); err != nil {
			return build.Result{}, err
		}
	}
	if r.Remote != "" && !isRemote(r.Remote) {
		return build.Result{}, fault.Invalidf("remoteURL (%s) could not be recognized as URL: use http://, https:// or a git repository", redact.URLs(r.Remote))
	}
	if r.Session == "" {
		end, err := b.serve(ctx, r, req)
		if err != nil {
			return build.Result{}, err
		}
		defer end()
	}
	var resp *controlapi.SolveResponse
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(watching)
	g.Go(func() error { return follow(gctx, c.ControlClient(), req.Ref, r.Version, tell) })
	resp, err = c.ControlClient().Solve(ctx, req)
	if err != nil {
		stop() // its status may never end
		_ = g.Wait()
		if ctx.Err() != nil {
			return build.Result{}, context.Cause(ctx)
		}
		text := plainText(err)
		if !begun && !beforehand(text) {
			tell(build.Progress{Begun: true})
		}
		return build.Result{}, failure(r, text)
	}
	if err := g.Wait(); err != nil {
		return build.Result{}, err
	}
	id := resp.ExporterResponse[exptypes.ExporterImageConfigDigestKey]
	if id == "" {
		id = resp.ExporterResponse[exptypes.ExporterImageDigestKey]
	}
	return build.Result{ImageID: id}, nil
}

// enter notes a build that may be cancelled by its id.
func (b *Builder) enter(id string, cancel func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.builds[id] != nil {
		return fault.Conflictf("build id %q is taken", id)
	}
	if b.builds == nil {
		b.builds = map[string]func(){}
	}
	b.builds[id] = cancel
	return nil
}

func (b *Builder) leave(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.builds, id)
}

// Cancel ends a build by the id that its client gave; one that is not there is no error.
func (b *Builder) Cancel(id string) {
	b.mu.Lock()
	cancel := b.builds[id]
	b.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// request words a build for BuildKit.
func (b *Builder) request(r build.Request) (*controlapi.SolveRequest, error) {
	attrs := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	set("filename", r.Dockerfile)
	set("target", r.Target)
	set("platform", r.Platform)
	if r.CgroupParent != "" && !parentName.MatchString(r.CgroupParent) {
		return nil, fault.Invalidf("cgroup-parent %q is not valid: use names of letters, digits, _ . @ -, joined by /", r.CgroupParent)
	}
	set("cgroup-parent", r.CgroupParent)
	set("context", r.Remote)
	for k, v := range r.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range r.Labels {
		attrs["label:"+k] = v
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	}
	attrs["image-resolve-mode"] = pb.AttrImageResolveModePreferLocal
	if r.Pull {
		attrs["image-resolve-mode"] = pb.AttrImageResolveModeForcePull
	}
	switch r.Network {
	case "", "default", "bridge":
	case "host", "none":
		attrs["force-network-mode"] = r.Network
	default:
		return nil, fault.Invalidf("network mode %q is not supported for builds: use default, none or host", r.Network)
	}
	hosts, err := b.extraHosts(r.ExtraHosts)
	if err != nil {
		return nil, err
	}
	set("add-hosts", hosts)
	if r.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(r.ShmSize, 10)
	}
	var limits []string
	for _, u := range r.Ulimits {
		limits = append(limits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	set("ulimit", strings.Join(limits, ","))
	maps.Copy(attrs, r.Limits)
	req := &controlapi.SolveRequest{
		Ref: identity.NewID(), Session: r.Session, Frontend: "dockerfile.v0", FrontendAttrs: attrs, Cache: &controlapi.CacheOptions{},
	}
	if r.Network == "host" {
		req.Entitlements = []string{"network.host"}
	}
	for _, from := range r.CacheFrom {
		req.Cache.Imports = append(req.Cache.Imports, &controlapi.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": from}})
	}
	outputs := r.Outputs
	if len(outputs) == 0 {
		outputs = []build.Output{{Type: client.ExporterImage}}
	}
	for _, o := range outputs {
		if o.Type == exporterMoby {
			o.Type = client.ExporterImage
		}
		e := &controlapi.Exporter{Type: o.Type, Attrs: maps.Clone(o.Attrs)}
		if e.Attrs == nil {
			e.Attrs = map[string]string{}
		}
		if o.Type == client.ExporterImage && e.Attrs["name"] == "" {
			e.Attrs["name"] = strings.Join(r.Tags, ",")
		}
		req.Exporters = append(req.Exporters, e)
	}
	return req, nil
}

func (b *Builder) extraHosts(list []string) (string, error) {
	var out []string
	for _, h := range list {
		name, address, ok := strings.Cut(h, ":")
		if n, a, equal := strings.Cut(h, "="); equal {
			name, address, ok = n, a, true
		}
		if !ok || name == "" || address == "" {
			return "", fault.Invalidf("bad format for add-host: %q", h)
		}
		if address == "host-gateway" {
			if b.o.Gateway == "" {
				return "", fault.Invalidf("unable to derive the IP value for host-gateway")
			}
			address = b.o.Gateway
		}
		out = append(out, name+"="+strings.Trim(address, "[]"))
	}
	return strings.Join(out, ","), nil
}

// serve opens a session that gives BuildKit a request's context and
// credentials, until end is called.
func (b *Builder) serve(ctx context.Context, r build.Request, req *controlapi.SolveRequest) (end func(), err error) {
	run, err := b.start()
	if err != nil {
		return nil, err
	}
	s, err := session.NewSession(ctx, "")
	if err != nil {
		return nil, err
	}
	s.Allow(credentials{list: r.Auth})
	if r.Context != nil {
		up := uploadprovider.New()
		req.FrontendAttrs["context"] = up.Add(io.NopCloser(r.Context))
		s.Allow(up)
	}
	req.Session = s.ID()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx, func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				if err := run.sessions.HandleConn(context.WithoutCancel(ctx), far, meta); err != nil {
					b.log.Debug("session ended", "error", err)
				}
			}()
			return near, nil
		}); err != nil {
			b.log.Debug("session not run", "error", err)
		}
	}()
	return func() { _ = s.Close(); <-done }, nil
}

// credentials answers BuildKit with what the client gave.
type credentials struct {
	auth.UnimplementedAuthServer
	list map[string]image.Auth
}

func (c credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

func (c credentials) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	host := r.Host
	keys := []string{host, "https://" + host, "http://" + host}
	if host == "registry-1.docker.io" || host == "docker.io" {
		keys = append(keys, "https://index.docker.io/v1/", "index.docker.io", "docker.io")
	}
	for _, k := range keys {
		a, ok := c.list[k]
		switch {
		case !ok:
		case a.IdentityToken != "":
			return &auth.CredentialsResponse{Secret: a.IdentityToken}, nil
		default:
			return &auth.CredentialsResponse{Username: a.Username, Secret: a.Password}, nil
		}
	}
	return &auth.CredentialsResponse{}, nil
}

// follow hands on what BuildKit tells of a build.
func follow(ctx context.Context, c controlapi.ControlClient, ref string, version int, tell func(build.Progress)) error {
	stream, err := c.Status(ctx, &controlapi.StatusRequest{Ref: ref})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		var p build.Progress
		if version == 2 {
			if p.Raw, err = proto.Marshal(resp); err != nil {
				return err
			}
			tell(p)
			continue
		}
		st := client.NewSolveStatus(resp)
		for _, v := range st.Vertexes {
			p.Steps = append(p.Steps, build.Step{ID: v.Digest.String(), Name: v.Name, Started: v.Started, Completed: v.Completed, Cached: v.Cached, Error: v.Error})
		}
		for _, l := range st.Logs {
			p.Logs = append(p.Logs, build.Log{Step: l.Vertex.String(), Stream: l.Stream, Data: l.Data})
		}
		for _, w := range st.Warnings {
			p.Warnings = append(p.Warnings, string(w.Short))
		}
		tell(p)
	}
}

// Usage lists the cache.
func (b *Builder) Usage(ctx context.Context) ([]build.Record, error) {
	if !b.used() {
		return nil, nil
	}
	c, err := b.client(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, err := c.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	var out []build.Record
	for _, u := range list {
		out = append(out, record(u))
	}
	return out, nil
}

// used tells whether anything was ever built here.
func (b *Builder) used() bool {
	_, err := os.Stat(filepath.Join(b.o.Root, "cache.db"))
	return err == nil
}

func record(u *client.UsageInfo) build.Record {
	return build.Record{
		ID: u.ID, Type: string(u.RecordType), Description: u.Description, Parents: u.Parents, InUse: u.InUse, Shared: u.Shared, Size: u.Size,
		Created: u.CreatedAt, LastUsed: u.LastUsedAt, Uses: u.UsageCount,
	}
}

// Prune removes of the cache what is not in use.
func (b *Builder) Prune(ctx context.Context, o build.PruneOptions) (ids []string, freed int64, err error) {
	if !b.used() {
		return nil, 0, nil
	}
	c, err := b.client(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer c.Close()
	ch := make(chan client.UsageInfo)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range ch {
			ids = append(ids, u.ID)
			if !u.Shared {
				freed += u.Size
			}
		}
	}()
	opts := []client.PruneOption{client.WithFilter(o.Filters), client.WithKeepOpt(o.UnusedFor, o.ReservedSpace, o.MaxUsedSpace, o.MinFreeSpace)}
	if o.All {
		opts = append(opts, client.PruneAll)
	}
	err = c.Prune(ctx, ch, opts...)
	close(ch)
	<-done
	slices.Sort(ids)
	return ids, freed, err
}
