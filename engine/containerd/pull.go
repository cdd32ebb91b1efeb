package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// Limits of a pull.
const (
	defaultDownloads = 3              // layers at a time, of all pulls together
	fetchAttempts    = 5              // of one layer, each from where the last has stopped
	retryStep        = time.Second    // longer by this much after each attempt
	keepPartial      = 24 * time.Hour // what an interrupted pull has fetched
)

// Labels of ours in containerd's stores.
const (
	pullLabel   = "io.berth.pull"         // on a lease: the reference that was being pulled
	digestLabel = "io.berth.image.digest" // on an image: the index that a name came from
)

// Pull fetches an image from its registry and unpacks it. Layers come in
// parallel; a pull that was interrupted goes on where it has stopped.
func (l *Library) Pull(ctx context.Context, ref string, o image.PullOptions, report func(image.Progress)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return fault.Invalidf("invalid reference format: %w", err)
	}
	report = serial(report)
	if !o.All || !reference.IsNameOnly(named) {
		return l.pullOne(in(ctx), reference.TagNameOnly(named), o, report)
	}
	tags, err := l.reg.Load().tags(ctx, named, o.Auth)
	if err != nil {
		return remoteError(named, err)
	}
	for _, tag := range tags {
		one, err := reference.WithTag(named, tag)
		if err != nil {
			return fault.Invalidf("registry names the tag %q: %w", tag, err)
		}
		if err := l.pullOne(in(ctx), one, o, report); err != nil {
			return err
		}
	}
	return nil
}

func (l *Library) pullOne(ctx context.Context, named reference.Named, o image.PullOptions, report func(image.Progress)) error {
	if o.Platform != "" {
		if _, err := platforms.Parse(o.Platform); err != nil {
			return fault.Invalidf("%w", err)
		}
	}
	name := named.String()
	resolver := l.reg.Load().resolver(ctx, o.Auth, nil)
	_, top, err := resolver.Resolve(ctx, name)
	if err != nil {
		return remoteError(named, err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return remoteError(named, err)
	}
	ctx, done, err := l.pullLease(ctx, name)
	if err != nil {
		return err
	}
	p := &pull{l: l, fetcher: fetcher, named: named, top: top, report: report}
	err = p.run(ctx, o.Platform)
	done(err)
	return remoteError(named, err)
}

// pullLease keeps what is fetched. What an interrupted pull leaves stays for
// keepPartial; what turned out to be bad goes at once.
func (l *Library) pullLease(ctx context.Context, name string) (context.Context, func(error), error) {
	service := l.c.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(keepPartial), leases.WithLabel(pullLabel, name))
	if err != nil {
		return nil, nil, err
	}
	return leases.WithLease(ctx, lease.ID), func(failure error) {
		ctx := context.WithoutCancel(ctx)
		old := []leases.Lease{lease}
		switch {
		case failure == nil:
			if all, err := service.List(ctx, fmt.Sprintf("labels.%q==%q", pullLabel, name)); err == nil {
				old = all
			}
		case !errors.Is(failure, fault.ErrInvalid) && !errors.Is(failure, fault.ErrUnsupported):
			return
		}
		for _, o := range old {
			if err := service.Delete(ctx, o); err != nil && !errdefs.IsNotFound(err) {
				l.o.Logger.Warn("lease not released", "error", err)
			}
		}
	}, nil
}

// pull is one image on its way here.
type pull struct {
	l       *Library
	fetcher remotes.Fetcher
	named   reference.Named
	top     ocispec.Descriptor
	report  func(image.Progress)

	meters map[string]*meter // by layer digest
}

func (p *pull) run(ctx context.Context, platform string) error {
	manifest, m, err := p.manifest(ctx, p.top, platform, 0)
	if err != nil {
		return err
	}
	if err := imageLayers(m); err != nil {
		return err
	}
	b, err := p.blob(ctx, m.Config)
	if err != nil {
		return err
	}
	config, err := readConfig(b, m)
	if err != nil {
		return err
	}
	at := reference.FamiliarString(p.named)
	var mark string
	switch r := p.named.(type) {
	case reference.Digested:
		mark = r.Digest().String()
	case reference.Tagged:
		mark = r.Tag()
	}
	p.report(image.Progress{ID: mark, Status: "Pulling from " + reference.Path(p.named)})
	if err := p.layers(ctx, manifest, m, identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs))); err != nil {
		return err
	}
	target := p.top
	labels := map[string]string{}
	if platform != "" && manifest.Digest != p.top.Digest {
		// The name stands for the platform asked for, whatever else is here.
		if want, err := platforms.Parse(platform); err == nil && !platforms.Default().Match(want) {
			target, labels[digestLabel] = manifest, p.top.Digest.String()
		}
	}
	target.Annotations, target.Platform = nil, nil
	p.l.mu.RLock()
	old := p.l.names[p.named.String()]
	p.l.mu.RUnlock()
	if err := p.l.name(ctx, p.named.String(), target, labels); err != nil {
		return err
	}
	status := "Status: Downloaded newer image for " + at
	if old != nil && old.Target.Digest == target.Digest {
		status = "Status: Image is up to date for " + at
	}
	p.report(image.Progress{Status: "Digest: " + p.top.Digest.String()})
	p.report(image.Progress{Status: status})
	p.l.mu.RLock()
	t := p.l.targets[target.Digest]
	p.l.mu.RUnlock()
	p.l.publish("pull", at, t, reference.FamiliarName(p.named))
	return nil
}

// manifest goes from what the reference names to the manifest for a platform.
func (p *pull) manifest(ctx context.Context, d ocispec.Descriptor, platform string, depth int) (ocispec.Descriptor, ocispec.Manifest, error) {
	switch {
	case depth > 2:
		return d, ocispec.Manifest{}, fault.Invalidf("index %s is nested too deep", d.Digest)
	case strings.HasPrefix(d.MediaType, "application/vnd.docker.distribution.manifest.v1"):
		return d, ocispec.Manifest{}, fault.Unsupportedf("%s is a Docker Image Format v1 or schema 1 image, which is not supported: its publisher must push it again", reference.FamiliarString(p.named))
	case !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType):
		return d, ocispec.Manifest{}, fault.Invalidf("unsupported manifest media type %q", d.MediaType)
	}
	b, err := p.blob(ctx, d)
	if err != nil {
		return d, ocispec.Manifest{}, err
	}
	if images.IsManifestType(d.MediaType) {
		m, err := readManifest(b, d.MediaType)
		return d, m, err
	}
	index, err := readIndex(b, d.MediaType)
	if err != nil {
		return d, ocispec.Manifest{}, err
	}
	// Labels, for the garbage collector: content that is not here needs none.
	child, err := choose(index, platform)
	if err != nil {
		return d, ocispec.Manifest{}, err
	}
	found, m, err := p.manifest(ctx, child, platform, depth+1)
	if err != nil {
		return found, m, err
	}
	return found, m, p.link(ctx, d)
}

// link tells the garbage collector what content needs.
func (p *pull) link(ctx context.Context, d ocispec.Descriptor) error {
	cs := p.l.c.ContentStore()
	_, err := images.SetChildrenMappedLabels(cs, images.ChildrenHandler(cs), images.ChildGCLabels)(ctx, d)
	return err
}

// blob fetches a small document and keeps it.
func (p *pull) blob(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fault.Invalidf("%s of %d bytes exceeds the limit of %d", d.MediaType, d.Size, maxConfig)
	}
	d.URLs = nil
	if err := p.fetch(ctx, d, nil); err != nil {
		return nil, err
	}
	return content.ReadBlob(ctx, p.l.c.ContentStore(), d)
}

// layers fetches and unpacks what is not here.
func (p *pull) layers(ctx context.Context, manifest ocispec.Descriptor, m ocispec.Manifest, chains []ocispecDigest) error {
	p.meters = map[string]*meter{}
	waiting := 0
	for i, d := range m.Layers {
		t := &meter{report: p.report, id: short(d.Digest), total: d.Size}
		if p.l.here(ctx, d, chains[i]) {
			t.say("Already exists")
			continue
		}
		p.meters[d.Digest.String()] = t
		t.say("Pulling fs layer")
		if waiting++; waiting > defaultDownloads {
			t.say("Waiting")
		}
	}
	byChain := map[string]*meter{}
	for i, c := range chains {
		byChain[c.String()] = p.meters[m.Layers[i].Digest.String()]
	}
	fetch := func(ctx context.Context, d ocispec.Descriptor) error {
		d.URLs = nil
		return p.fetch(ctx, d, p.meters[d.Digest.String()])
	}
	if err := p.l.unpackManifest(ctx, manifest, fetch, unpackReport{
		extracting: func(d ocispec.Descriptor, n int64) {
			if t := p.meters[d.Digest.String()]; t != nil {
				t.at("Extracting", n)
			}
		},
		complete: func(chain string) {
			if t := byChain[chain]; t != nil {
				t.say("Pull complete")
			}
		},
	}); err != nil {
		return err
	}
	if source, err := docker.AppendDistributionSourceLabel(p.l.c.ContentStore(), p.named.String()); err == nil {
		for _, d := range append([]ocispec.Descriptor{manifest, m.Config}, m.Layers...) {
			if _, err := source(ctx, d); err != nil {
				p.l.o.Logger.Debug("source of content not kept", "error", err)
			}
		}
	}
	return nil
}

// here tells whether a layer is both fetched and unpacked.
func (l *Library) here(ctx context.Context, d ocispec.Descriptor, chain ocispecDigest) bool {
	if _, err := l.c.ContentStore().Info(ctx, d.Digest); err != nil {
		return false
	}
	_, err := l.c.SnapshotService(l.sn).Stat(ctx, chain.String())
	return err == nil
}

// fetch brings one blob, trying again where the network fails.
func (p *pull) fetch(ctx context.Context, d ocispec.Descriptor, t *meter) error {
	for attempt := 1; ; attempt++ {
		err := p.fetchOnce(ctx, d, t)
		if err == nil || ctx.Err() != nil || attempt == fetchAttempts || !temporary(err) {
			return err
		}
		wait := time.Duration(attempt) * retryStep
		if t != nil {
			t.say(fmt.Sprintf("Retrying in %d seconds", int(wait.Seconds())))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// temporary tells failures of the way from refusals.
func temporary(err error) bool {
	return !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) && !errors.Is(err, docker.ErrInvalidAuthorization) && registrySays(err) == "" && !strings.Contains(err.Error(), "unexpected status")
}

func (p *pull) fetchOnce(ctx context.Context, d ocispec.Descriptor, t *meter) error {
	cs := p.l.c.ContentStore()
	ref := remotes.MakeRefKey(ctx, d)
	w, err := content.OpenWriter(ctx, cs, content.WithRef(ref), content.WithDescriptor(d))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	status, err := w.Status()
	if err != nil {
		return err
	}
	if status.Offset > d.Size {
		if err := w.Truncate(0); err != nil {
			return err
		}
	}
	if d.Size == 0 {
		return bad(ctx, cs, ref, d, w.Commit(ctx, 0, d.Digest))
	}
	body, err := p.fetcher.Fetch(ctx, d)
	if err != nil {
		return err
	}
	r := &counted{ReadCloser: body, tell: func(n int64) {
		if t == nil {
			return
		}
		if t.at("Downloading", n); n == d.Size {
			t.say("Verifying Checksum")
		}
	}}
	defer r.Close()
	if err := content.Copy(ctx, w, io.Reader(r), d.Size, d.Digest); err != nil {
		return bad(ctx, cs, ref, d, err)
	}
	if t != nil {
		t.say("Download complete")
	}
	return nil
}

// bad drops content that is not what its digest says, so that it is not resumed.
func bad(ctx context.Context, cs content.Store, ref string, d ocispec.Descriptor, err error) error {
	if err == nil || errdefs.IsAlreadyExists(err) {
		return nil
	}
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	_ = cs.Abort(context.WithoutCancel(ctx), ref)
	return fault.Invalidf("filesystem layer verification failed for digest %s: %w", d.Digest, err)
}
