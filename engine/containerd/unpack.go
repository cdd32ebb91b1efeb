package containerd

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/lib/fault"
)

// unpackReport is told how unpacking goes on; either func may be nil.
type unpackReport struct {
	extracting func(layer ocispec.Descriptor, read int64)
	complete   func(chain string)
}

// unpackManifest fetches the content of one image where fetch is given, makes
// its snapshots as soon as their layers are here, and returns when all of it
// is on disk.
func (l *Library) unpackManifest(ctx context.Context, d ocispec.Descriptor, fetch func(context.Context, ocispec.Descriptor) error, report unpackReport) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cs := l.c.ContentStore()
	opts := []diff.ApplyOpt{diff.WithSyncFs(true)}
	if report.extracting != nil {
		opts = append(opts, diff.WithProgress(report.extracting))
	}
	u, err := unpack.NewUnpacker(ctx, cs, unpack.WithUnpackPlatform(unpack.Platform{
		Platform: platforms.All, SnapshotterKey: l.sn, Snapshotter: watched{l.c.SnapshotService(l.sn), report.complete},
		Applier: l.o.Engine.applier, ApplyOpts: opts,
	}), unpack.WithLimiter(l.reg.Load().downloads), unpack.WithDuplicationSuppressor(&l.working), unpack.WithFetchAllContent())
	if err != nil {
		return err
	}
	children := images.SetChildrenMappedLabels(cs, images.ChildrenHandler(cs), images.ChildGCLabels)
	handler := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if fetch != nil {
			if err := fetch(ctx, d); err != nil {
				return nil, err
			}
		}
		if !images.IsManifestType(d.MediaType) {
			return nil, nil
		}
		return children(ctx, d)
	})
	d.Platform = nil
	err = images.Dispatch(ctx, u.Unpack(handler), nil, d)
	if err != nil {
		cancel()
	}
	_, failed := u.Wait()
	if err == nil {
		err = failed
	}
	if err != nil && ctx.Err() == nil && hostile(err) {
		return fault.Invalidf("%w", err)
	}
	return err
}

// hostile tells an archive's faults from the host's.
func hostile(err error) bool {
	if errors.Is(err, fault.ErrInvalid) {
		return false
	}
	text := err.Error()
	for _, sign := range []string{"archive/tar", "wrong diff id", "gzip: invalid", "zstd", "breakout", "unhandled tar header"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// watched tells of each snapshot that has become whole.
type watched struct {
	snapshots.Snapshotter
	complete func(chain string)
}

func (w watched) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := w.Snapshotter.Commit(ctx, name, key, opts...)
	if err == nil && w.complete != nil {
		w.complete(name)
	}
	return err
}
