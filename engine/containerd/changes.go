package containerd

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// What a Change's Kind means.
const (
	modified = iota
	added
	deleted
)

// Changes lists what differs from the image, by looking at the upper layer
// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
func (r *RootFS) Changes(ctx context.Context, id container.ID) ([]container.Change, error) {
	data, err := r.Layers(ctx, id)
	if err != nil {
		return nil, err
	}
	d := difference{upper: data["UpperDir"]}
	if d.upper == "" || data["WorkDir"] == "" {
		return nil, fault.Unsupportedf("changes are known only with the overlay snapshotter")
	}
	if data["LowerDir"] != "" {
		d.lower = strings.Split(data["LowerDir"], ":")
	}
	if err := d.walk(ctx, "", false); err != nil {
		return nil, err
	}
	slices.SortFunc(d.list, func(a, b container.Change) int { return strings.Compare(a.Path, b.Path) })
	return d.list, nil
}

// difference compares an upper folder with the layers below it.
type difference struct {
	upper string
	lower []string // topmost first
	list  []container.Change
}

// walk compares one folder of the upper layer. hidden says that what lies
// below it no longer shows through.
func (d *difference) walk(ctx context.Context, dir string, hidden bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hidden = hidden || dir != "" && xattr(d.upper+dir, "trusted.overlay.opaque") == "y"
	entries, err := os.ReadDir(d.upper + dir)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, e := range entries {
		path := dir + "/" + e.Name()
		info, err := e.Info()
		if err != nil {
			return err
		}
		seen[e.Name()] = true
		below := d.below(path)
		switch {
		case whiteout(info) && below != nil:
			d.list = append(d.list, container.Change{Path: path, Kind: deleted})
		case whiteout(info):
		case below == nil:
			d.list = append(d.list, container.Change{Path: path, Kind: added})
		default:
			d.list = append(d.list, container.Change{Path: path, Kind: modified})
		}
		if info.IsDir() {
			if err := d.walk(ctx, path, hidden); err != nil {
				return err
			}
		}
	}
	if !hidden {
		return nil
	}
	for name := range d.names(dir) {
		if !seen[name] {
			d.list = append(d.list, container.Change{Path: dir + "/" + name, Kind: deleted})
		}
	}
	return nil
}

// below gives what the lower layers show at a path, nil for nothing.
func (d *difference) below(path string) fs.FileInfo {
	for _, layer := range d.lower {
		info, last := look(layer, path)
		if info != nil && !whiteout(info) {
			return info
		}
		if last {
			return nil
		}
	}
	return nil
}

// look finds a path in one layer. last says that layers further down do not
// show there: something on the way is no folder, is deleted, or hides them.
func look(layer, path string) (info fs.FileInfo, last bool) {
	at := layer
	for part := range strings.SplitSeq(path[1:], "/") {
		at = filepath.Join(at, part)
		var err error
		if info, err = os.Lstat(at); err != nil {
			return nil, last
		}
		if !info.IsDir() {
			if at == layer+path {
				return info, true
			}
			return nil, true
		}
		if at != layer+path {
			last = last || xattr(at, "trusted.overlay.opaque") == "y"
		}
	}
	return info, last
}

// names lists what the lower layers show in a folder.
func (d *difference) names(dir string) map[string]bool {
	found, gone := map[string]bool{}, map[string]bool{}
	for _, layer := range d.lower {
		info, last := look(layer, dir)
		if info != nil && !info.IsDir() {
			break
		}
		if info != nil {
			entries, _ := os.ReadDir(layer + dir)
			for _, e := range entries {
				if i, err := e.Info(); err == nil && whiteout(i) {
					gone[e.Name()] = true
				} else if !gone[e.Name()] {
					found[e.Name()] = true
				}
			}
			last = last || xattr(layer+dir, "trusted.overlay.opaque") == "y"
		}
		if last {
			break
		}
	}
	return found
}

// whiteout tells overlay's mark of a deleted file: a device 0, 0.
func whiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0
}
