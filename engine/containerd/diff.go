package containerd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	continuity "github.com/containerd/continuity/fs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
)

// errFolded says that an upper layer refers to files below it.
var errFolded = errors.New("the upper layer is not whole")

// layerOf stores what a container has changed as a layer. Overlay has it in
// one folder; of other snapshotters both trees are compared.
func (l *Library) layerOf(ctx context.Context, id container.ID) (ocispec.Descriptor, error) {
	sn := l.c.SnapshotService(l.sn)
	mounts, err := sn.Mounts(ctx, string(id))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if upper := upperOf(mounts); upper != "" {
		d, err := l.store(ctx, images.MediaTypeDockerSchema2Layer, nil, func(w io.Writer) error { return writeUpper(ctx, w, upper) })
		if !errors.Is(err, errFolded) {
			return d, err
		}
	}
	d, err := rootfs.CreateDiff(ctx, string(id), sn, l.c.DiffService(), diff.WithMediaType(ocispec.MediaTypeImageLayer))
	d.MediaType = images.MediaTypeDockerSchema2Layer
	return d, err
}

func upperOf(mounts []mount.Mount) string {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return ""
	}
	return overlayData(mounts)["UpperDir"]
}

// writeUpper writes an overlay's upper folder as a layer: its whiteouts and
// opaque folders become those of the image specification (layer.md).
func writeUpper(ctx context.Context, w io.Writer, upper string) error {
	cw := archive.NewChangeWriter(w, upper)
	err := filepath.WalkDir(upper, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == upper {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, upper)
		switch {
		case whiteout(info):
			return cw.HandleChange(continuity.ChangeKindDelete, rel, nil, nil)
		case folded(path, info):
			return errFolded
		}
		if err := cw.HandleChange(continuity.ChangeKindModify, rel, info, nil); err != nil {
			return err
		}
		if info.IsDir() && xattr(path, "trusted.overlay.opaque") == "y" {
			return cw.HandleChange(continuity.ChangeKindDelete, filepath.Join(rel, ".wh..opq"), nil, nil)
		}
		return nil
	})
	return errors.Join(err, cw.Close())
}

// folded tells entries whose content lies in another place: renamed folders
// and files of which only the metadata was copied up (overlayfs.rst).
func folded(path string, info fs.FileInfo) bool {
	if info.IsDir() {
		return xattr(path, "trusted.overlay.redirect") != ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || st.Size == 0 || st.Blocks > 0 {
		return false
	}
	_, err := unix.Lgetxattr(path, "trusted.overlay.metacopy", nil)
	return err == nil
}

func xattr(path, name string) string {
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}
