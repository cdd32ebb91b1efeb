package containerd

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/lib/fault"
)

// Put names an image whose content is in the store; "" keeps it without a
// name. Layers says which snapshots hold the trees of its chains of layers
// already: only what is in none is unpacked.
func (l *Library) Put(ctx context.Context, name string, d ocispec.Descriptor, layers map[string]string) error {
	if strings.HasPrefix(name, danglingPrefix) {
		name = ""
	}
	if name != "" {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return fault.Invalidf("invalid reference format: %s", name)
		}
		name = reference.TagNameOnly(named).String()
	}
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	t, err := l.resolve(ctx, d)
	if err != nil {
		return err
	}
	for _, one := range append([]*target{t}, t.others...) {
		if err := l.adopt(ctx, one, layers); err != nil {
			return err
		}
	}
	if err := l.ready(ctx, t); err != nil {
		return err
	}
	if err := l.name(ctx, name, d, nil); err != nil {
		return err
	}
	if name != "" {
		l.publish("tag", t.id, t, familiar(name))
	}
	return nil
}

// adopt notes the snapshots of an image's layers at its configuration, when
// all that steps wrote into them is on disk.
func (l *Library) adopt(ctx context.Context, t *target, layers map[string]string) error {
	cs, sn := l.c.ContentStore(), l.c.SnapshotService(l.sn)
	labels := map[string]string{}
	for _, c := range t.chains {
		key := layers[c.String()]
		if key == "" {
			continue
		}
		if _, err := sn.Stat(ctx, key); errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return err
		}
		if _, err := sn.Stat(ctx, c.String()); err == nil {
			continue // unpacked under its own name
		}
		labels[l.builtLabel(c)] = key
	}
	if len(labels) == 0 {
		return nil
	}
	info, err := cs.Info(ctx, t.config.Digest)
	if err != nil {
		return err
	}
	var fields []string
	for k, v := range labels {
		if info.Labels[k] != v {
			fields = append(fields, "labels."+k)
		}
	}
	if len(fields) == 0 {
		return l.measure(ctx, t) // it was built before
	}
	if err := syncFileSystem(l.o.Engine.root); err != nil {
		return err
	}
	if _, err := cs.Update(ctx, content.Info{Digest: t.config.Digest, Labels: labels}, fields...); err != nil {
		return fmt.Errorf("note snapshots of an image: %w", err)
	}
	return l.measure(ctx, t)
}

// syncFileSystem returns when all that was written to the file system of a folder is on disk.
func syncFileSystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// Hosts tells how registries are reached, without credentials.
func (l *Library) Hosts() docker.RegistryHosts {
	return func(domain string) ([]docker.RegistryHost, error) {
		return l.reg.Load().places(context.Background(), domain, nil)
	}
}
