package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/format/dockerchange"
	"github.com/berth-project/berth/lib/fault"
)

// Limits of archives that come from outside.
const (
	maxArchiveFiles = 20_000    // content files in one archive
	spaceCheck      = 32 << 20  // bytes between looks at the free space
	spaceReserve    = 256 << 20 // bytes that an archive may not fill
)

// Load reads an archive of `docker save` or an OCI layout, plain or
// compressed. Of an archive that is refused nothing stays.
func (l *Library) Load(ctx context.Context, r io.Reader, quiet bool, wanted []string, report func(image.Progress)) error {
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	report = serial(report)
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return fault.Invalidf("archive: %w", err)
	}
	defer plain.Close()
	limited := &limitedStore{Store: l.c.ContentStore(), left: maxArchiveFiles}
	top, err := archive.ImportIndex(ctx, limited, &roomy{Reader: plain, dir: l.o.Engine.root})
	var ours *fault.Error
	switch {
	case errors.As(err, &ours), ctx.Err() != nil, errors.Is(err, unix.ENOSPC):
		return err
	case err != nil:
		return fault.Invalidf("invalid archive: %w", err)
	}
	b, err := readBlob(ctx, l.c.ContentStore(), top)
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return fault.Invalidf("invalid archive: %w", err)
	}
	if len(index.Manifests) == 0 {
		return fault.Invalidf("invalid archive: it holds no image")
	}
	if len(index.Manifests) > maxManifests {
		return fault.Invalidf("invalid archive: it names %d images; the limit is %d", len(index.Manifests), maxManifests)
	}
	for _, d := range index.Manifests {
		if err := l.loadOne(ctx, d, quiet, wanted, report); err != nil {
			return err
		}
	}
	return nil
}

// limitedStore takes only so many contents of one archive.
type limitedStore struct {
	content.Store
	left int
}

func (s *limitedStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if s.left--; s.left < 0 {
		return nil, fault.Invalidf("invalid archive: more than %d files", maxArchiveFiles)
	}
	return s.Store.Writer(ctx, opts...)
}

// roomy reads until the disk is nearly full: an archive may be a bomb.
type roomy struct {
	io.Reader
	dir  string
	next int64
}

func (r *roomy) Read(p []byte) (int, error) {
	if r.next <= 0 {
		r.next = spaceCheck
		var st unix.Statfs_t
		if err := unix.Statfs(r.dir, &st); err == nil && uint64(st.Bsize)*st.Bavail < spaceReserve {
			return 0, &fault.Error{Class: fault.ErrExhausted, Msg: "no space left on device for images"}
		}
	}
	n, err := r.Reader.Read(p)
	r.next -= int64(n)
	return n, err
}

func (l *Library) loadOne(ctx context.Context, d ocispec.Descriptor, quiet bool, wanted []string, report func(image.Progress)) error {
	if err := checkDescriptor(d); err != nil {
		return err
	}
	name, err := archiveName(d)
	if err != nil {
		return err
	}
	d.Annotations, d.Platform = nil, nil
	found, err := l.resolve(ctx, d)
	if err != nil {
		return fault.Invalidf("invalid archive: %w", err)
	}
	selected := []*target{found}
	if len(wanted) > 0 {
		selected = nil
		for _, platform := range wanted {
			t, err := found.pick(familiarOrID(name, d.Digest.String()), platform)
			if err != nil {
				return err
			}
			selected = append(selected, t)
		}
		if len(selected) == 1 {
			d = selected[0].manifest
			d.Annotations, d.Platform = nil, nil
		}
	}
	if err := l.link(ctx, d); err != nil {
		return err
	}
	for _, t := range selected {
		meters := map[string]*meter{}
		for i, layer := range t.layers {
			meters[layer.Digest.String()] = &meter{report: report, id: short(t.spec.RootFS.DiffIDs[i]), total: layer.Size}
		}
		progress := unpackReport{}
		if !quiet {
			progress.extracting = func(d ocispec.Descriptor, n int64) {
				if m := meters[d.Digest.String()]; m != nil {
					m.at("Loading layer", n)
				}
			}
		}
		if err := l.unpackManifest(ctx, t.manifest, nil, progress); err != nil {
			return fmt.Errorf("unpack image: %w", err)
		}
	}
	if err := l.name(ctx, name, d, nil); err != nil {
		return err
	}
	id := selected[0].id
	text := "Loaded image ID: " + id
	if name != "" {
		text = "Loaded image: " + familiar(name)
	}
	report(image.Progress{Stream: text + "\n"})
	l.publish("load", id, selected[0], familiarOrID(name, id))
	return nil
}

// archiveName gives the whole reference that an archive's annotation means.
func archiveName(d ocispec.Descriptor) (string, error) {
	text := d.Annotations[images.AnnotationImageName]
	if text == "" {
		// A bare tag names nothing; other tools write whole references here.
		ref := d.Annotations[ocispec.AnnotationRefName]
		if named, err := reference.ParseNormalizedNamed(ref); err == nil && !reference.IsNameOnly(named) {
			text = ref
		}
	}
	if text == "" {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return "", fault.Invalidf("invalid archive: it names an image %q: %w", text, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

func familiarOrID(name, id string) string {
	if ref := referenceOf(name); name != "" && ref != "" {
		return ref
	}
	return id
}

// link labels content so that what it names lives as long as it does.
func (l *Library) link(ctx context.Context, d ocispec.Descriptor) error {
	cs := l.c.ContentStore()
	children := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		list, err := images.Children(ctx, cs, d)
		if err != nil && !images.IsIndexType(d.MediaType) {
			return nil, err
		}
		return slices.DeleteFunc(list, func(c ocispec.Descriptor) bool {
			_, err := cs.Info(ctx, c.Digest)
			return err != nil
		}), nil
	})
	return images.Walk(ctx, images.SetChildrenMappedLabels(cs, children, images.ChildGCLabels), d)
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
	layer, err := l.writeLayer(ctx, r)
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
	spec.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}
	spec.History = []ocispec.History{{Created: &now, Comment: comment}}
	t, err := l.write(ctx, name, spec, dockerExtra{Comment: comment}, []ocispec.Descriptor{layer})
	if err != nil {
		return "", err
	}
	l.publish("import", t.id, t, familiarOrID(name, t.id))
	return t.id, nil
}
