package buildkit

import (
	"context"
	"strings"

	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/progress"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// exporterMoby is how old clients of the Docker engine name its image store.
const exporterMoby = "moby"

// imageExporter writes what was built into the engine's image library: the
// manifest over BuildKit's blobs, and names for it. No layer is unpacked: the
// snapshots in which the steps ran are the image's.
type imageExporter struct {
	next   exporter.Exporter
	images Images
}

func (e imageExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	inner := map[string]string{}
	keep := true
	for k, v := range attrs {
		switch exptypes.ImageExporterOptKey(k) {
		case exptypes.OptKeyUnpack, exptypes.OptKeyDanglingPrefix, exptypes.OptKeyDanglingEmptyOnly: // the library's affair
		case exptypes.OptKeyStore:
			keep = v == "" || v == "true" || v == "1"
		default:
			inner[k] = v
		}
	}
	inner[string(exptypes.OptKeyStore)] = "false"
	i, err := e.next.Resolve(ctx, id, inner)
	if err != nil {
		return nil, err
	}
	return &imageInstance{ExporterInstance: i, images: e.images, keep: keep, attrs: attrs}, nil
}

type imageInstance struct {
	exporter.ExporterInstance
	images Images
	keep   bool
	attrs  map[string]string
}

func (i *imageInstance) Type() string             { return client.ExporterImage }
func (i *imageInstance) Attrs() map[string]string { return i.attrs }

func (i *imageInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (_ map[string]string, _ exporter.FinalizeFunc, _ exporter.DescriptorReference, err error) {
	resp, finalize, ref, err := i.ExporterInstance.Export(ctx, src, info)
	if err != nil || !i.keep {
		return resp, finalize, ref, err
	}
	defer func() {
		if err != nil && ref != nil {
			_ = ref.Release()
		}
	}()
	layers, err := i.layers(ctx, src, info)
	if err != nil {
		return nil, nil, nil, err
	}
	d := ref.Descriptor()
	d.Annotations = nil
	names := []string{""}
	if n := resp[exptypes.ExporterImageNameKey]; n != "" {
		names = strings.Split(n, ",")
	}
	for _, name := range names {
		text := "naming to " + name
		if name == "" {
			text = "storing without a name"
		}
		done := progress.OneOff(ctx, text)
		if err := done(i.images.Put(ctx, name, d, layers)); err != nil {
			return nil, nil, nil, err
		}
	}
	return resp, finalize, ref, nil
}

// layers makes all blobs of the image be here, and gives the snapshots that
// hold its layers by their chain ids.
func (i *imageInstance) layers(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, error) {
	var refs []cache.ImmutableRef
	if src.Ref != nil {
		refs = append(refs, src.Ref)
	}
	for _, r := range src.Refs {
		if r != nil {
			refs = append(refs, r)
		}
	}
	layers := map[string]string{}
	for _, r := range refs {
		remotes, err := r.GetRemotes(ctx, false, cacheconfig.RefConfig{Compression: i.Config().Compression()}, false, session.NewGroup(info.SessionID))
		if err != nil {
			return nil, err
		}
		if len(remotes) == 0 {
			continue
		}
		if lazy, ok := remotes[0].Provider.(cache.Unlazier); ok {
			if err := lazy.Unlazy(ctx); err != nil {
				return nil, err
			}
		}
		if err := i.chain(ctx, r, remotes[0].Descriptors, info, layers); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// keySnapshot is where a cache record of BuildKit keeps its snapshot's name.
const keySnapshot = "cache.snapshot"

func (i *imageInstance) chain(ctx context.Context, r cache.ImmutableRef, blobs []ocispec.Descriptor, info exporter.ExportBuildInfo, layers map[string]string) error {
	list := r.LayerChain()
	defer func() { _ = list.Release(context.WithoutCancel(ctx)) }()
	if len(list) != len(blobs) {
		return nil // of another shape: the library unpacks it
	}
	// A lazy base has no snapshots yet.
	if err := r.Extract(ctx, session.NewGroup(info.SessionID)); err != nil {
		return err
	}
	var diffs []digest.Digest
	for n, d := range blobs {
		diff, err := digest.Parse(d.Annotations["containerd.io/uncompressed"])
		if err != nil {
			return nil
		}
		diffs = append(diffs, diff)
		chain := identity.ChainID(diffs).String()
		if key := shared(list[n].GetString(keySnapshot)); key != "" && key != chain {
			layers[chain] = key
		}
	}
	return nil
}
