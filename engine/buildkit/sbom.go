package buildkit

import (
	"context"
	"encoding/csv"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
)

// ScannerImage is the engine's own generator of SBOMs, without its tag. No
// registry can have the name (RFC 2606): nobody else's image comes in its place.
const (
	ScannerImage = scannerHost + "/sbom-scanner"
	scannerHost  = "berth.invalid"
)

// scanner names the engine's own generator where a client wants an SBOM and
// names none: BuildKit would pull one from a registry.
func (b *Builder) scanner(ctx context.Context, attrs map[string]string) error {
	for key, value := range attrs {
		name, ok := strings.CutPrefix(key, "attest:")
		if !ok {
			name, ok = strings.CutPrefix(key, "build-arg:BUILDKIT_ATTEST_")
		}
		if !ok || !strings.EqualFold(name, "sbom") || b.o.Scanner == nil {
			continue
		}
		var fields []string
		if value != "" {
			var err error
			if fields, err = csv.NewReader(strings.NewReader(value)).Read(); err != nil {
				continue // BuildKit says so
			}
		}
		if slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, "generator=") }) {
			continue
		}
		ref, err := b.o.Scanner(ctx)
		if err != nil {
			return fmt.Errorf("sbom: %w", err)
		}
		if value != "" {
			value += ","
		}
		attrs[key] = value + "generator=" + ref
	}
	return nil
}

// ResolveSourceMetadata finds the scanner in the engine, also where a client
// wants newer images from their registries (--pull).
func (n *node) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, j solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if strings.HasPrefix(op.Identifier, "docker-image://"+ScannerImage) && opt.ImageOpt != nil {
		local := *opt.ImageOpt
		local.ResolveMode = pb.AttrImageResolveModePreferLocal
		opt.ImageOpt = &local
	}
	return n.Worker.ResolveSourceMetadata(ctx, op, opt, sm, j)
}

// ownHosts are the registries without the engine's own name, for which nothing
// is asked on any network.
func ownHosts(next docker.RegistryHosts) docker.RegistryHosts {
	return func(domain string) ([]docker.RegistryHost, error) {
		if domain == scannerHost {
			return nil, nil // no error: a fetcher is made for what is here already, too
		}
		return next(domain)
	}
}
