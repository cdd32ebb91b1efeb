package containerd

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
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
		e := l.names[one.String()]
		l.mu.RUnlock()
		if e == nil && len(l.tagsHere(named)) == 0 {
			return fault.NotFoundf("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
		}
		if e == nil {
			return fault.NotFoundf("tag does not exist: %s", reference.FamiliarString(one))
		}
		if n == 0 {
			report(image.Progress{Status: "The push refers to repository [" + named.Name() + "]"})
		}
		p := &push{l: l, named: one, auth: o.Auth, report: report}
		if err := p.run(in(ctx), e, o.Platform); err != nil {
			return pushError(one, err)
		}
	}
	return nil
}

// tagsHere lists the tags of a repository.
func (l *Library) tagsHere(named reference.Named) (list []reference.Named) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for name, e := range l.names {
		if e.repo != named.Name() || e.tag == "" {
			continue
		}
		if n, err := reference.ParseNormalizedNamed(name); err == nil {
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

func (p *push) run(ctx context.Context, e *entry, platform string) error {
	ctx, done, err := p.l.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	p.l.mu.RLock()
	t := p.l.targets[e.Target.Digest]
	p.l.mu.RUnlock()
	if t == nil {
		return fault.NotFoundf("tag does not exist: %s", reference.FamiliarString(p.named))
	}
	top := t.desc
	if platform == "" && t.desc.Digest != t.manifest.Digest && t.whole() {
		err = p.index(ctx, t)
	} else {
		top, err = p.single(ctx, t, platform)
	}
	if err != nil {
		return err
	}
	if err := p.document(ctx, top, p.named.String()+"@"+top.Digest.String()); err != nil {
		return err
	}
	tag := p.named.(reference.Tagged).Tag()
	p.report(image.Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, top.Digest, top.Size)})
	p.report(image.Progress{Aux: image.PushResult{Tag: tag, Digest: top.Digest.String(), Size: top.Size}})
	p.l.publish("push", reference.FamiliarString(p.named), t, reference.FamiliarName(p.named))
	return nil
}

// whole tells whether everything that an index names is here.
func (t *target) whole() bool {
	return !slices.ContainsFunc(t.absent, func(a absentManifest) bool { return !a.here })
}

// index sends all manifests of an index as they are, without the tag.
func (p *push) index(ctx context.Context, t *target) error {
	list, err := flatten(ctx, p.l.c.ContentStore(), t.desc, 0)
	if err != nil {
		return err
	}
	for _, d := range list {
		if _, err := p.manifest(ctx, d, false); err != nil {
			return err
		}
		if err := p.document(ctx, d, p.named.Name()+"@"+d.Digest.String()); err != nil {
			return err
		}
	}
	return nil
}

// single sends one image. Layers that lie here as they were made are sent
// compressed; the image's names then point at the manifest that was sent.
func (p *push) single(ctx context.Context, t *target, platform string) (ocispec.Descriptor, error) {
	one, err := t.pick(reference.FamiliarString(p.named), platform)
	if err != nil {
		return t.desc, err
	}
	sent, err := p.manifest(ctx, one.manifest, true)
	if err != nil || sent.Digest == one.manifest.Digest || t.desc.Digest != one.manifest.Digest {
		return sent, err
	}
	return sent, p.l.retarget(ctx, t.desc.Digest, sent)
}

// retarget points all names of one manifest at another of the same image.
func (l *Library) retarget(ctx context.Context, from ocispecDigest, to ocispec.Descriptor) error {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.RLock()
	var changed []string
	for name, e := range l.names {
		if e.Target.Digest == from && e.tag != "" {
			changed = append(changed, name)
		}
	}
	l.mu.RUnlock()
	for _, name := range changed {
		if _, err := l.c.ImageService().Update(ctx, images.Image{Name: name, Target: to}, "target"); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return l.reload(ctx, changed...)
}

// manifest sends the content of one image and gives the manifest that names
// it: another one where layers had to be compressed.
func (p *push) manifest(ctx context.Context, d ocispec.Descriptor, compress bool) (ocispec.Descriptor, error) {
	cs := p.l.c.ContentStore()
	d.Annotations, d.Platform = nil, nil
	b, err := readBlob(ctx, cs, d)
	if err != nil {
		return d, err
	}
	m, err := readManifest(b, d.MediaType)
	if err != nil {
		return d, err
	}
	meters := make([]*meter, len(m.Layers))
	for i, d := range m.Layers {
		meters[i] = &meter{report: p.report, id: short(p.diffID(ctx, d)), total: d.Size}
		meters[i].say("Preparing")
	}
	layers := slices.Clone(m.Layers)
	group, ctx2 := errgroup.WithContext(ctx)
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
			if compress {
				var err error
				if d, err = p.l.compress(ctx2, d); err != nil {
					return err
				}
				layers[i], meters[i].total = d, d.Size
			}
			return p.blob(ctx2, d, meters[i])
		})
	}
	group.Go(func() error { return p.blob(ctx2, m.Config, nil) })
	if err := group.Wait(); err != nil {
		return d, err
	}
	if slices.EqualFunc(layers, m.Layers, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest }) {
		return d, nil
	}
	return p.l.writeManifest(ctx, d.MediaType, m.Config, layers)
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
	pusher, err := p.l.reg.Load().resolver(ctx, p.auth, tracker).Pusher(ctx, ref)
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
