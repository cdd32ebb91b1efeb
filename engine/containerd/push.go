package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// maxUploads is how many layers one push sends at a time.
const maxUploads = 5

// Push sends an image to the registry that its name says: content first, the
// manifest last. What the registry has already is not sent again.
func (l *Library) Push(ctx context.Context, ref string, o image.PushOptions, report func(image.Progress)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return fault.Invalidf("invalid reference format: %w", err)
	}
	if _, digested := named.(reference.Digested); digested {
		return fault.Invalidf("cannot push a digest reference")
	}
	report = serial(report)
	refs := []reference.Named{reference.TagNameOnly(named)}
	if o.All && reference.IsNameOnly(named) {
		refs = l.tagsHere(named)
	}
	if len(refs) == 0 {
		return fault.NotFoundf("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	for n, one := range refs {
		l.mu.RLock()
		i, ok := l.names[one.String()]
		l.mu.RUnlock()
		if !ok && len(l.tagsHere(named)) == 0 {
			return fault.NotFoundf("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
		}
		if !ok {
			return fault.NotFoundf("tag does not exist: %s", reference.FamiliarString(one))
		}
		if n == 0 {
			report(image.Progress{Status: "The push refers to repository [" + named.Name() + "]"})
		}
		p := &push{l: l, named: one, auth: o.Auth, report: report}
		if err := p.run(in(ctx), i.Target, o.Platform); err != nil {
			return pushError(one, err)
		}
	}
	return nil
}

// tagsHere lists the tags of a repository.
func (l *Library) tagsHere(named reference.Named) (list []reference.Named) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for name := range l.names {
		if !strings.HasPrefix(name, named.Name()) {
			continue
		}
		n, err := reference.ParseNormalizedNamed(name)
		if err != nil || n.Name() != named.Name() {
			continue
		}
		if _, tagged := n.(reference.Tagged); tagged {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b reference.Named) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// pushError words refusals of a push.
func pushError(named reference.Named, err error) error {
	if strings.Contains(err.Error(), "no basic auth credentials") {
		return &fault.Error{Class: fault.ErrUnauthenticated, Msg: "no basic auth credentials"}
	}
	refused := remoteError(named, err)
	if text, found := strings.CutPrefix(refused.Error(), "pull access denied for "+reference.FamiliarName(named)+", repository does not exist or may require 'docker login': "); found {
		return fault.Forbiddenf("%s", text)
	}
	return refused
}

type push struct {
	l      *Library
	named  reference.Named
	auth   *image.Auth
	report func(image.Progress)
}

func (p *push) run(ctx context.Context, top ocispec.Descriptor, platform string) error {
	top, manifests, err := p.choose(ctx, top, platform)
	if err != nil {
		return err
	}
	for _, d := range manifests {
		if err := p.manifest(ctx, d); err != nil {
			return err
		}
		if d.Digest != top.Digest {
			// Children of an index are pushed by digest, without the tag.
			if err := p.document(ctx, d, p.named.Name()+"@"+d.Digest.String()); err != nil {
				return err
			}
		}
	}
	if err := p.document(ctx, top, p.named.String()+"@"+top.Digest.String()); err != nil {
		return err
	}
	tag := p.named.(reference.Tagged).Tag()
	p.report(image.Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, top.Digest, top.Size)})
	p.report(image.Progress{Aux: image.PushResult{Tag: tag, Digest: top.Digest.String(), Size: top.Size}})
	p.l.publish("push", reference.FamiliarString(p.named), map[string]string{"name": reference.FamiliarName(p.named)})
	return nil
}

// choose gives what the tag shall name and the manifests that go first: the
// whole index where all of it is here, else this host's image alone.
func (p *push) choose(ctx context.Context, top ocispec.Descriptor, platform string) (ocispec.Descriptor, []ocispec.Descriptor, error) {
	cs := p.l.c.ContentStore()
	if images.IsManifestType(top.MediaType) {
		return top, []ocispec.Descriptor{top}, p.fits(ctx, top, platform)
	}
	b, err := readBlob(ctx, cs, top)
	if err != nil {
		return top, nil, err
	}
	index, err := readIndex(b, top.MediaType)
	if err != nil {
		return top, nil, err
	}
	if platform == "" {
		whole := true
		for _, d := range index.Manifests {
			whole = whole && images.IsManifestType(d.MediaType) && complete(ctx, cs, d)
		}
		if whole {
			return top, index.Manifests, nil
		}
		one, _, err := findManifest(ctx, cs, top)
		one.Platform, one.Annotations = nil, nil
		return one, []ocispec.Descriptor{one}, err
	}
	one, err := choose(index, platform)
	if err == nil && !complete(ctx, cs, one) {
		err = fault.NotFoundf("image with reference %s was found but its content for the platform %s is not here", reference.FamiliarString(p.named), platform)
	}
	one.Platform, one.Annotations = nil, nil
	return one, []ocispec.Descriptor{one}, err
}

func (p *push) fits(ctx context.Context, d ocispec.Descriptor, platform string) error {
	if platform == "" {
		return nil
	}
	want, err := platforms.Parse(platform)
	if err != nil {
		return fault.Invalidf("%w", err)
	}
	have, err := images.Platforms(ctx, p.l.c.ContentStore(), d)
	if err != nil {
		return err
	}
	for _, h := range have {
		if platforms.Only(want).Match(h) {
			return nil
		}
	}
	return fault.NotFoundf("image with reference %s was found but does not provide the specified platform (%s)", reference.FamiliarString(p.named), platforms.FormatAll(want))
}

// complete tells whether all content of a manifest is here.
func complete(ctx context.Context, cs content.Store, d ocispec.Descriptor) bool {
	b, err := readBlob(ctx, cs, d)
	if err != nil {
		return false
	}
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) != nil {
		return false
	}
	for _, c := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if i, err := cs.Info(ctx, c.Digest); err != nil || i.Size != c.Size {
			return false
		}
	}
	return true
}

// manifest sends the content of one image.
func (p *push) manifest(ctx context.Context, d ocispec.Descriptor) error {
	cs := p.l.c.ContentStore()
	b, err := readBlob(ctx, cs, d)
	if err != nil {
		return err
	}
	m, err := readManifest(b, d.MediaType)
	if err != nil {
		return err
	}
	meters := make([]*meter, len(m.Layers))
	for i, d := range m.Layers {
		meters[i] = &meter{report: p.report, id: short(p.diffID(ctx, d)), total: d.Size}
		meters[i].say("Preparing")
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxUploads)
	for i, d := range m.Layers {
		if i >= maxUploads {
			meters[i].say("Waiting")
		}
		group.Go(func() error {
			if images.IsNonDistributable(d.MediaType) {
				meters[i].say("Skipped foreign layer")
				return nil
			}
			return p.blob(ctx, d, meters[i])
		})
	}
	group.Go(func() error { return p.blob(ctx, m.Config, nil) })
	return group.Wait()
}

// diffID is how people see a layer; it is in the content's labels.
func (p *push) diffID(ctx context.Context, d ocispec.Descriptor) ocispecDigest {
	if i, err := p.l.c.ContentStore().Info(ctx, d.Digest); err == nil {
		if id := ocispecDigest(i.Labels["containerd.io/uncompressed"]); id.Validate() == nil {
			return id
		}
	}
	return d.Digest
}

// blob sends one layer or configuration, trying again where the network fails.
func (p *push) blob(ctx context.Context, d ocispec.Descriptor, t *meter) error {
	cs := p.l.c.ContentStore()
	info, err := cs.Info(ctx, d.Digest)
	if err != nil {
		return err
	}
	for k, v := range info.Labels { // where a registry may have it already
		if strings.HasPrefix(k, "containerd.io/distribution.source.") {
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations[k] = v
		}
	}
	for attempt := 1; ; attempt++ {
		err := p.send(ctx, d, p.named.Name()+"@"+d.Digest.String(), t)
		if err == nil || attempt == fetchAttempts || ctx.Err() != nil || !temporary(err) {
			return err
		}
	}
}

func (p *push) send(ctx context.Context, d ocispec.Descriptor, ref string, t *meter) error {
	// A tracker of its own: what one attempt believes must not bind the next.
	tracker := docker.NewInMemoryTracker()
	pusher, err := p.l.reg.resolver(ctx, p.auth, tracker).Pusher(ctx, ref)
	if err != nil {
		return err
	}
	w, err := pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		if t != nil {
			status, _ := tracker.GetStatus(remotes.MakeRefKey(ctx, d))
			if status.MountedFrom != "" {
				t.say("Mounted from " + strings.TrimPrefix(status.MountedFrom, reference.Domain(p.named)+"/"))
			} else {
				t.say("Layer already exists")
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	ra, err := p.l.c.ContentStore().ReaderAt(ctx, d)
	if err != nil {
		return err
	}
	defer ra.Close()
	r := &counted{ReadCloser: section{io.NewSectionReader(ra, 0, ra.Size())}, tell: func(n int64) {
		if t != nil {
			t.at("Pushing", n)
		}
	}}
	if err := content.Copy(ctx, w, r, d.Size, d.Digest); err != nil {
		return err
	}
	if t != nil {
		t.say("Pushed")
	}
	if source, err := docker.AppendDistributionSourceLabel(p.l.c.ContentStore(), p.named.Name()+":x"); err == nil {
		_, err = source(ctx, d)
		if err != nil {
			p.l.o.Logger.Debug("source of content not kept", "error", err)
		}
	}
	return nil
}

// document sends a manifest or index.
func (p *push) document(ctx context.Context, d ocispec.Descriptor, ref string) error {
	d.Annotations, d.Platform = nil, nil
	return p.send(ctx, d, ref, nil)
}

// section closes nothing: the reader below has another owner.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }
