package buildkit

import (
	"context"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
)

// adapt reads what a client asks for, before BuildKit does.
func (b *Builder) adapt(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	var attrs map[string]string
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		for _, e := range r.Exporters {
			plain(e.Type, e.Attrs, r.Cache)
		}
		plain(r.ExporterDeprecated, r.ExporterAttrsDeprecated, r.Cache)
		attrs = r.FrontendAttrs
	case *gateway.SolveRequest:
		attrs = r.FrontendOpt
	}
	if parent := attrs["cgroup-parent"]; parent != "" {
		b.steps.allow(parent)
	}
	if err := b.scanner(ctx, attrs); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// plain makes images that stay in the engine keep their layers plain, as
// commit does: most are never sent anywhere, and a push compresses each once.
// Whoever asks for a compression, pushes at once or embeds a cache gets his.
func plain(kind string, attrs map[string]string, c *controlapi.CacheOptions) {
	if kind != client.ExporterImage && kind != exporterMoby || attrs == nil || attrs["compression"] != "" || attrs["push"] == "true" {
		return
	}
	if c != nil && len(c.Exports) > 0 || c != nil && c.ExportRefDeprecated != "" {
		return
	}
	attrs["compression"] = "uncompressed"
}
