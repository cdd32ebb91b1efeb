package maker

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/berth-project/berth/cli/library/layer"
	"github.com/berth-project/berth/format/debian"
)

// slim says which files of packages are left out of images. The same rules are
// in the debian image's dpkg configuration, so that later packages obey them.
func slim(name string) bool {
	for _, folder := range []string{"usr/share/man/", "usr/share/info/", "usr/share/groff/", "usr/share/lintian/", "usr/share/linda/", "usr/share/locale/", "usr/share/bug/", "usr/share/doc-base/"} {
		if strings.HasPrefix(name, folder) {
			return folder != "usr/share/locale/" || name != folder+"locale.alias"
		}
	}
	return strings.HasPrefix(name, "usr/share/doc/") && path.Base(name) != "copyright"
}

// unpack puts the files of all packages into a tree, as a first root in which
// dpkg can run.
func (m *Maker) unpack(p *plan, list []*debian.Package, tree *layer.Tree) error {
	// base-files first: it brings the links of a merged /usr.
	ordered := make([]*debian.Package, 0, len(list))
	for _, first := range []bool{true, false} {
		for _, x := range list {
			if (x.Name == "base-files") == first {
				ordered = append(ordered, x)
			}
		}
	}
	for _, x := range ordered {
		if err := m.unpackOne(x, tree); err != nil {
			return fmt.Errorf("unpack %s: %w", x.Name, err)
		}
	}
	return putFiles(tree, p)
}

func (m *Maker) unpackOne(p *debian.Package, tree *layer.Tree) error {
	at, err := m.path(p)
	if err != nil {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := debian.OpenDeb(f)
	if err != nil {
		return err
	}
	defer d.Close()
	if d.Control.Get("Package") != p.Name || d.Control.Get("Version") != string(p.Version) {
		return fmt.Errorf("the file is of %s %s", d.Control.Get("Package"), d.Control.Get("Version"))
	}
	return d.Files(func(h *tar.Header, body io.Reader) error {
		if h.Typeflag != tar.TypeDir && slim(h.Name) {
			return nil
		}
		return tree.Add(h, body)
	})
}
