package buildkit

import (
	"context"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc"
)

// adapt makes images that stay in the engine keep their layers plain, as
// commit does: most are never sent anywhere, and a push compresses each once.
// Whoever asks for a compression, pushes at once or embeds a cache gets his.
func adapt(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if r, ok := req.(*controlapi.SolveRequest); ok {
		for _, e := range r.Exporters {
			plain(e.Type, e.Attrs, r.Cache)
		}
		plain(r.ExporterDeprecated, r.ExporterAttrsDeprecated, r.Cache)
	}
	return next(ctx, req)
}

func plain(kind string, attrs map[string]string, c *controlapi.CacheOptions) {
	if kind != client.ExporterImage && kind != exporterMoby || attrs == nil || attrs["compression"] != "" || attrs["push"] == "true" {
		return
	}
	if c != nil && len(c.Exports) > 0 || c != nil && c.ExportRefDeprecated != "" {
		return
	}
	attrs["compression"] = "uncompressed"
}
