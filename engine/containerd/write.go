package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/lib/fault"
)

// Layers made here lie uncompressed: most are never sent anywhere, and those
// that are get compressed once, by the first push.
const (
	uncompressedLabel = "containerd.io/uncompressed" // on compressed content: its diff id
	compressedLabel   = "io.berth.compressed"        // on a plain layer: its compressed form
)

// writeLayer stores an archive of files, whatever its compression, as a layer.
func (l *Library) writeLayer(ctx context.Context, r io.Reader) (ocispec.Descriptor, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return ocispec.Descriptor{}, fault.Invalidf("archive: %w", err)
	}
	defer plain.Close()
	return l.store(ctx, images.MediaTypeDockerSchema2Layer, nil, func(w io.Writer) error {
		if _, err := io.Copy(w, &roomy{Reader: plain, dir: l.o.Engine.root}); err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		return nil
	})
}

// store keeps what fill writes.
func (l *Library) store(ctx context.Context, mediaType string, labels map[string]string, fill func(io.Writer) error) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType}
	cs := l.c.ContentStore()
	ref := fmt.Sprintf("berth-%d", time.Now().UnixNano())
	w, err := content.OpenWriter(ctx, cs, content.WithRef(ref))
	if err != nil {
		return d, err
	}
	defer w.Close()
	if err := fill(w); err != nil {
		return d, errors.Join(err, cs.Abort(context.WithoutCancel(ctx), ref))
	}
	status, err := w.Status()
	if err != nil {
		return d, err
	}
	d.Digest, d.Size = w.Digest(), status.Offset
	err = w.Commit(ctx, d.Size, d.Digest, content.WithLabels(labels))
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	return d, err
}

// compress gives the compressed form of a plain layer.
func (l *Library) compress(ctx context.Context, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	to := images.MediaTypeDockerSchema2LayerGzip
	switch d.MediaType {
	case ocispec.MediaTypeImageLayer:
		to = ocispec.MediaTypeImageLayerGzip
	case images.MediaTypeDockerSchema2Layer:
	default:
		return d, nil
	}
	cs := l.c.ContentStore()
	info, err := cs.Info(ctx, d.Digest)
	if err != nil {
		return d, err
	}
	if known, err := digest.Parse(info.Labels[compressedLabel]); err == nil {
		if i, err := cs.Info(ctx, known); err == nil {
			return ocispec.Descriptor{MediaType: to, Digest: i.Digest, Size: i.Size}, nil
		}
	}
	ra, err := cs.ReaderAt(ctx, d)
	if err != nil {
		return d, err
	}
	defer ra.Close()
	out, err := l.store(ctx, to, map[string]string{uncompressedLabel: d.Digest.String()}, func(w io.Writer) error {
		zip, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
		if err != nil {
			return err
		}
		if _, err := io.Copy(zip, io.NewSectionReader(ra, 0, ra.Size())); err != nil {
			return err
		}
		return zip.Close()
	})
	if err != nil {
		return d, err
	}
	info = content.Info{Digest: d.Digest, Labels: map[string]string{compressedLabel: out.Digest.String()}}
	_, err = cs.Update(ctx, info, "labels."+compressedLabel)
	return out, err
}

// write stores a new image, unpacks and names it.
func (l *Library) write(ctx context.Context, name string, spec dockerspec.DockerOCIImage, extra dockerExtra, layers []ocispec.Descriptor) (*target, error) {
	whole := struct {
		dockerspec.DockerOCIImage
		dockerExtra
	}{DockerOCIImage: spec, dockerExtra: extra}
	config, err := l.writeJSON(ctx, images.MediaTypeDockerSchema2Config, whole, nil)
	if err != nil {
		return nil, err
	}
	d, err := l.writeManifest(ctx, images.MediaTypeDockerSchema2Manifest, config, layers)
	if err != nil {
		return nil, err
	}
	if err := l.unpackManifest(ctx, d, nil, unpackReport{}); err != nil {
		return nil, err
	}
	if err := l.name(ctx, name, d, nil); err != nil {
		return nil, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if t := l.targets[d.Digest]; t != nil {
		return t, nil
	}
	return nil, fault.Internalf("the new image is not readable")
}

// writeManifest stores a manifest; what it names lives as long as it does.
func (l *Library) writeManifest(ctx context.Context, mediaType string, config ocispec.Descriptor, layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if layers == nil {
		layers = []ocispec.Descriptor{}
	}
	manifest := struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}{specs.Versioned{SchemaVersion: 2}, mediaType, config, layers}
	labels := map[string]string{"containerd.io/gc.ref.content.config": config.Digest.String()}
	for i, d := range layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = d.Digest.String()
	}
	return l.writeJSON(ctx, mediaType, manifest, labels)
}

func (l *Library) writeJSON(ctx context.Context, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, content.WriteBlob(ctx, l.c.ContentStore(), d.Digest.String(), bytes.NewReader(b), d, content.WithLabels(labels))
}
