package containerd

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/format/dockerchange"
	"github.com/berth-project/berth/lib/fault"
)

// Load reads an archive of `docker save` or an OCI layout, plain or compressed.
func (l *Library) Load(ctx context.Context, r io.Reader, quiet bool, _ []string, report func(image.Progress)) error {
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return fault.Invalidf("archive: %w", err)
	}
	defer plain.Close()
	index, err := archive.ImportIndex(ctx, l.c.ContentStore(), plain, archive.WithImportCompression())
	if err != nil {
		return fault.Invalidf("not an image archive: %w", err)
	}
	b, err := readBlob(ctx, l.c.ContentStore(), index)
	if err != nil {
		return err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return fault.Invalidf("not an image archive: %w", err)
	}
	if len(idx.Manifests) == 0 {
		return fault.Invalidf("the archive holds no image")
	}
	for _, d := range idx.Manifests {
		if err := l.loadOne(ctx, d, report); err != nil {
			return err
		}
	}
	return nil
}

func (l *Library) loadOne(ctx context.Context, d ocispec.Descriptor, report func(image.Progress)) error {
	if err := l.root(ctx, d); err != nil {
		return err
	}
	if err := l.unpack(ctx, d); err != nil {
		return fmt.Errorf("unpack image: %w", err)
	}
	name := d.Annotations[images.AnnotationImageName]
	if name == "" {
		name = d.Annotations[ocispec.AnnotationRefName]
	}
	if name != "" {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return fault.Invalidf("archive names an image %q: %w", name, err)
		}
		name = reference.TagNameOnly(named).String()
	}
	d.Annotations = nil
	if err := l.name(ctx, name, d); err != nil {
		return err
	}
	l.mu.RLock()
	t := l.targets[d.Digest]
	l.mu.RUnlock()
	if t == nil {
		return fault.Invalidf("the archive's image is not readable")
	}
	text := "Loaded image ID: " + t.id
	if name != "" {
		text = "Loaded image: " + familiar(name)
	}
	report(image.Progress{Stream: text + "\n"})
	l.publish("load", t.id, map[string]string{"name": familiarOrID(name, t.id)})
	return nil
}

func familiarOrID(name, id string) string {
	if name == "" {
		return id
	}
	return familiar(name)
}

// root labels content so that what a manifest names lives as long as it does.
func (l *Library) root(ctx context.Context, d ocispec.Descriptor) error {
	cs := l.c.ContentStore()
	return images.Walk(ctx, images.SetChildrenMappedLabels(cs, images.ChildrenHandler(cs), images.ChildGCLabels), d)
}

// Save writes images as an archive that Docker, skopeo and podman read.
func (l *Library) Save(ctx context.Context, refs []string, _ []string, w io.Writer) error {
	if len(refs) == 0 {
		return fault.Invalidf("no image is named")
	}
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.All), archive.WithSkipMissing(l.c.ContentStore())}
	for _, ref := range refs {
		name, t, err := l.find(ref)
		if err != nil {
			return err
		}
		var names []string
		if name != "" && !strings.HasPrefix(name, danglingPrefix) {
			names = []string{name}
		}
		// The manifest itself, not its index: old readers know no more.
		opts = append(opts, archive.WithManifest(t.manifest, names...))
		l.publish("save", t.id, map[string]string{"name": familiarOrID(name, t.id)})
	}
	return archive.Export(in(ctx), l.c.ContentStore(), w, opts...)
}

// Import makes an image of one layer from a plain archive of files.
func (l *Library) Import(ctx context.Context, r io.Reader, o image.ImportOptions) (string, error) {
	name := ""
	if o.Reference != "" {
		var err error
		if name, err = parseTag(o.Reference); err != nil {
			return "", err
		}
	}
	var config dockerspec.DockerOCIImageConfig
	if err := dockerchange.Apply(&config, o.Changes); err != nil {
		return "", fault.Invalidf("%w", err)
	}
	platform := platforms.DefaultSpec()
	if o.Platform != "" {
		p, err := platforms.Parse(o.Platform)
		if err != nil {
			return "", fault.Invalidf("%w", err)
		}
		platform = p
	}
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	layer, diffID, err := l.writeLayer(ctx, r)
	if err != nil {
		return "", err
	}
	now := time.Now().UTC()
	comment := o.Message
	if comment == "" {
		comment = "Imported from " + o.Source
	}
	spec := dockerspec.DockerOCIImage{Config: config}
	spec.Created, spec.Platform = &now, ocispec.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant}
	spec.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}}
	spec.History = []ocispec.History{{Created: &now, Comment: comment}}
	t, err := l.write(ctx, name, spec, dockerExtra{Comment: comment}, []ocispec.Descriptor{layer})
	if err != nil {
		return "", err
	}
	l.publish("import", t.id, map[string]string{"name": familiarOrID(name, t.id)})
	return t.id, nil
}

// writeLayer stores an archive of files, whatever its compression, as a gzip layer.
func (l *Library) writeLayer(ctx context.Context, r io.Reader) (d ocispec.Descriptor, diffID digest.Digest, err error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return d, "", fault.Invalidf("archive: %w", err)
	}
	defer plain.Close()
	cs := l.c.ContentStore()
	w, err := content.OpenWriter(ctx, cs, content.WithRef(fmt.Sprintf("import-%d", time.Now().UnixNano())))
	if err != nil {
		return d, "", err
	}
	defer w.Close()
	whole := digest.Canonical.Digester()
	zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return d, "", err
	}
	if _, err = io.Copy(io.MultiWriter(zip, whole.Hash()), plain); err != nil {
		return d, "", fmt.Errorf("read archive: %w", err)
	}
	if err = zip.Close(); err != nil {
		return d, "", err
	}
	status, err := w.Status()
	if err != nil {
		return d, "", err
	}
	diffID = whole.Digest()
	err = w.Commit(ctx, status.Offset, "", content.WithLabels(map[string]string{"containerd.io/uncompressed": diffID.String()}))
	d = ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2LayerGzip, Digest: w.Digest(), Size: status.Offset}
	return d, diffID, ignoreExists(err)
}

func ignoreExists(err error) error {
	if errors.Is(err, fault.ErrExists) {
		return nil
	}
	return err
}

// write stores a new image of this host's platform, unpacks and names it.
func (l *Library) write(ctx context.Context, name string, spec dockerspec.DockerOCIImage, extra dockerExtra, layers []ocispec.Descriptor) (*target, error) {
	whole := struct {
		dockerspec.DockerOCIImage
		dockerExtra
		DockerVersion string `json:"docker_version,omitempty"`
	}{DockerOCIImage: spec, dockerExtra: extra}
	config, err := l.writeJSON(ctx, images.MediaTypeDockerSchema2Config, whole, nil)
	if err != nil {
		return nil, err
	}
	manifest := struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}{specs.Versioned{SchemaVersion: 2}, images.MediaTypeDockerSchema2Manifest, config, layers}
	labels := map[string]string{"containerd.io/gc.ref.content.config": config.Digest.String()}
	for i, d := range layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = d.Digest.String()
	}
	desc, err := l.writeJSON(ctx, images.MediaTypeDockerSchema2Manifest, manifest, labels)
	if err != nil {
		return nil, err
	}
	if err := l.unpack(ctx, desc); err != nil {
		return nil, err
	}
	if err := l.name(ctx, name, desc); err != nil {
		return nil, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if t := l.targets[desc.Digest]; t != nil {
		return t, nil
	}
	return nil, fault.Internalf("the new image is not readable")
}

func (l *Library) writeJSON(ctx context.Context, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, content.WriteBlob(ctx, l.c.ContentStore(), d.Digest.String(), bytes.NewReader(b), d, content.WithLabels(labels))
}
