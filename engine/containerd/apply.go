package containerd

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	layers "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/moby/sys/userns"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/holes"
)

// Limits of one layer that is unpacked.
const (
	maxNames    = 256 << 20 // bytes of all names together: they are held until the end
	entryCost   = 4 << 10   // bytes of the disk that an entry takes besides its content
	nodeReserve = 10_000    // inodes that a layer may not take
)

// applier unpacks layers. It does so as containerd's own, which does what this
// one has no place for; but a few bytes of a layer can neither fill the disk
// nor the memory, and what is wrong with a layer is told from what is wrong
// with the host.
type applier struct {
	next  diff.Applier
	store content.Provider
}

func (a applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	dir, parents, ok := folders(mounts)
	if !ok {
		return a.next.Apply(ctx, d, mounts, opts...)
	}
	var o diff.ApplyConfig
	for _, set := range opts {
		if err := set(ctx, d, &o); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	ra, err := a.store.ReaderAt(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read layer: %w", err)
	}
	packed := &counter{r: content.NewReader(ra), tell: o.Progress}
	defer ra.Close()
	plain := diff.NewProcessorChain(d.MediaType, packed)
	for {
		if plain, err = diff.GetProcessor(ctx, plain, o.ProcessorPayloads); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("read layer of type %s: %w", d.MediaType, err)
		}
		defer plain.Close()
		if plain.MediaType() == ocispec.MediaTypeImageLayer {
			break
		}
	}
	digester := digest.Canonical.Digester()
	in := &counter{r: io.TeeReader(plain, digester.Hash())}
	room := &room{dir: dir}
	apply := []layers.ApplyOpt{layers.WithFilter(room.entry)}
	if len(parents) > 0 {
		apply = append(apply, layers.WithConvertWhiteout(layers.OverlayConvertWhiteout), layers.WithParents(parents))
	}
	_, err = layers.Apply(ctx, dir, in, apply...)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // what follows the archive belongs to the digest
	}
	switch {
	case err == nil:
	case ctx.Err() != nil || ofHost(err):
		return ocispec.Descriptor{}, err
	default:
		return ocispec.Descriptor{}, fault.Invalidf("the layer is not valid: %s", strings.ReplaceAll(err.Error(), dir, ""))
	}
	packed.told()
	if o.SyncFs {
		if err := syncFs(dir); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: in.n, Digest: digester.Digest()}, nil
}

// folders finds the folder behind the mounts of a snapshot that is being made,
// and those below it where there are such.
func folders(mounts []mount.Mount) (dir string, parents []string, ok bool) {
	if len(mounts) != 1 || userns.RunningInUserNS() { // there, whiteouts are made another way
		return "", nil, false
	}
	switch m := mounts[0]; m.Type {
	case "bind":
		return m.Source, nil, true
	case "overlay":
		for _, o := range m.Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				dir = upper
			} else if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
				parents = strings.Split(lower, ":")
			}
		}
		return dir, parents, dir != "" && len(parents) > 0
	}
	return "", nil, false
}

// ofHost tells an error that no archive can be blamed for.
func ofHost(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.ENOMEM, unix.EMFILE, unix.ENFILE, fault.ErrInvalid, fault.ErrExhausted} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func syncFs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// room looks at each entry of a layer before it is unpacked.
type room struct {
	dir   string
	taken int64 // bytes since the last look at the disk
	names int64
	begun bool
}

func (r *room) entry(h *tar.Header) (bool, error) {
	if r.names += int64(len(h.Name) + len(h.Linkname)); r.names > maxNames {
		return false, fault.Invalidf("the layer is not valid: the names of its files take more than %d bytes", maxNames)
	}
	if holes.TooLarge(h) {
		return false, fault.Invalidf("the layer is not valid: %q has %d bytes and is stored with holes: the limit of such files is %d", h.Name, h.Size, holes.Limit)
	}
	size := max(h.Size, 0)
	if r.begun && r.taken+entryCost <= spaceCheck && size <= spaceCheck {
		r.taken += size + entryCost
		return true, nil
	}
	r.begun, r.taken = true, 0
	var st unix.Statfs_t
	if err := unix.Statfs(r.dir, &st); err != nil {
		return false, os.NewSyscallError("statfs", err)
	}
	switch free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize; {
	case size > all:
		return false, fault.Invalidf("the layer is not valid: %q has %d bytes, more than this disk", h.Name, size)
	case free < spaceReserve || size > free-spaceReserve, st.Files > 0 && st.Ffree < nodeReserve:
		return false, &fault.Error{Class: fault.ErrExhausted, Msg: "no space left on device for images"}
	}
	r.taken = size + entryCost
	return true, nil
}

// counter counts what is read; tell, where it is not nil, is told beforehand.
type counter struct {
	r    io.Reader
	n    int64
	tell func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	c.told()
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) told() {
	if c.tell != nil {
		c.tell(c.n)
	}
}
