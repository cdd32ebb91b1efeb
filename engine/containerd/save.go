package containerd

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/lib/fault"
)

// Save writes images as an OCI layout that is a docker archive too: new
// readers follow index.json, old ones manifest.json or repositories.
func (l *Library) Save(ctx context.Context, refs []string, wanted []string, w io.Writer) error {
	if len(refs) == 0 {
		return fault.Invalidf("no image is named")
	}
	s := &save{cs: l.c.ContentStore(), blobs: map[digest.Digest]ocispec.Descriptor{}, entries: map[digest.Digest]*saveEntry{}, repositories: map[string]map[string]string{}}
	ctx = in(ctx)
	for _, ref := range refs {
		if err := l.saveOne(ctx, s, ref, wanted); err != nil {
			return err
		}
	}
	return s.write(ctx, w)
}

// saveOne adds one reference; that of a whole repository adds all its tags.
func (l *Library) saveOne(ctx context.Context, s *save, ref string, wanted []string) error {
	name, t, err := l.find(ref)
	var names []string
	if named, perr := reference.ParseNormalizedNamed(ref); perr == nil && reference.IsNameOnly(named) && (err != nil || name != "") {
		for _, n := range l.tagsHere(named) {
			names = append(names, n.String())
		}
	}
	if err != nil && len(names) == 0 {
		return err
	}
	if len(names) == 0 {
		names = []string{name}
	}
	for _, n := range names {
		if n != "" {
			if _, t, err = l.find(n); err != nil {
				return err
			}
		}
		if strings.HasPrefix(n, danglingPrefix) {
			n = ""
		}
		if err := s.add(ctx, t, n, wanted); err != nil {
			return err
		}
		l.publish("save", t.id, t, familiarOrID(n, t.id))
	}
	return nil
}

// save collects what an archive will hold.
type save struct {
	cs           content.Store
	blobs        map[digest.Digest]ocispec.Descriptor
	top          []ocispec.Descriptor
	entries      map[digest.Digest]*saveEntry
	order        []digest.Digest
	repositories map[string]map[string]string
}

// saveEntry is one row of manifest.json.
type saveEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *save) add(ctx context.Context, t *target, name string, wanted []string) error {
	selected := append([]*target{t}, t.others...)
	top := t.desc
	if t.variant {
		selected, top = []*target{t}, t.manifest
	}
	if len(wanted) > 0 {
		selected = nil
		for _, platform := range wanted {
			one, err := t.pick(familiarOrID(name, t.id), platform)
			if err != nil {
				return err
			}
			if !slices.Contains(selected, one) {
				selected = append(selected, one)
			}
		}
	}
	if len(selected) == 1 {
		// The manifest itself, not its index: old readers know no more.
		top = selected[0].manifest
	}
	for n, one := range selected {
		d := one.manifest
		s.blob(d)
		s.blob(one.config)
		for _, layer := range one.layers {
			if _, err := s.cs.Info(ctx, layer.Digest); err != nil {
				return fmt.Errorf("layer %s: %w", layer.Digest, err)
			}
			s.blob(layer)
		}
		if n == 0 {
			s.row(one, name)
		}
	}
	if top.Digest != selected[0].manifest.Digest {
		s.blob(top)
		for _, a := range t.absent {
			if a.here {
				if err := s.tree(ctx, a.desc); err != nil {
					return err
				}
			}
		}
	}
	top.Annotations, top.Platform = nil, nil
	if name != "" {
		tag := name
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			if tagged, ok := named.(reference.Tagged); ok {
				tag = tagged.Tag()
			}
		}
		top.Annotations = map[string]string{images.AnnotationImageName: name, ocispec.AnnotationRefName: tag}
	}
	if !slices.ContainsFunc(s.top, func(d ocispec.Descriptor) bool {
		return d.Digest == top.Digest && d.Annotations[images.AnnotationImageName] == top.Annotations[images.AnnotationImageName]
	}) {
		s.top = append(s.top, top)
	}
	return nil
}

// row adds an image to what old readers see.
func (s *save) row(t *target, name string) {
	e := s.entries[t.manifest.Digest]
	if e == nil {
		e = &saveEntry{Config: blobPath(t.config.Digest), RepoTags: []string{}, Layers: []string{}}
		for _, d := range t.layers {
			e.Layers = append(e.Layers, blobPath(d.Digest))
		}
		s.entries[t.manifest.Digest] = e
		s.order = append(s.order, t.manifest.Digest)
	}
	named, err := reference.ParseNormalizedNamed(name)
	if name == "" || err != nil {
		return
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok || slices.Contains(e.RepoTags, reference.FamiliarString(tagged)) {
		return
	}
	e.RepoTags = append(e.RepoTags, reference.FamiliarString(tagged))
	repo := reference.FamiliarName(tagged)
	if s.repositories[repo] == nil {
		s.repositories[repo] = map[string]string{}
	}
	if n := len(t.layers); n > 0 {
		s.repositories[repo][tagged.Tag()] = t.layers[n-1].Digest.Encoded()
	}
}

func (s *save) blob(d ocispec.Descriptor) { s.blobs[d.Digest] = d }

// tree adds a manifest with all it names.
func (s *save) tree(ctx context.Context, d ocispec.Descriptor) error {
	s.blob(d)
	b, err := readBlob(ctx, s.cs, d)
	if err != nil {
		return err
	}
	m, err := readManifest(b, d.MediaType)
	if err != nil {
		return err
	}
	for _, c := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		s.blob(c)
	}
	return nil
}

func blobPath(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }

func (s *save) write(ctx context.Context, to io.Writer) error {
	w := tar.NewWriter(to)
	put := func(h tar.Header, body io.Reader) error {
		h.Mode = cmp.Or(h.Mode, 0o444)
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if body == nil {
			return nil
		}
		_, err := io.CopyN(w, body, h.Size)
		return err
	}
	document := func(name string, v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return put(tar.Header{Name: name, Size: int64(len(b)), Typeflag: tar.TypeReg}, strings.NewReader(string(b)))
	}
	dirs := map[string]bool{"blobs/": true}
	list := make([]ocispec.Descriptor, 0, len(s.blobs))
	for _, d := range s.blobs {
		list = append(list, d)
		dirs["blobs/"+d.Digest.Algorithm().String()+"/"] = true
	}
	slices.SortFunc(list, func(a, b ocispec.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	if err := document(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if err := put(tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}, nil); err != nil {
			return err
		}
	}
	for _, d := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		ra, err := s.cs.ReaderAt(ctx, d)
		if err != nil {
			return fmt.Errorf("read %s: %w", d.Digest, err)
		}
		err = put(tar.Header{Name: blobPath(d.Digest), Size: ra.Size(), Typeflag: tar.TypeReg}, io.NewSectionReader(ra, 0, ra.Size()))
		if err := cmp.Or(err, ra.Close()); err != nil {
			return err
		}
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: s.top}
	if err := document(ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	rows := make([]*saveEntry, 0, len(s.order))
	for _, d := range s.order {
		rows = append(rows, s.entries[d])
	}
	if err := document("manifest.json", rows); err != nil {
		return err
	}
	if len(s.repositories) > 0 {
		if err := document("repositories", s.repositories); err != nil {
			return err
		}
	}
	return w.Close()
}
