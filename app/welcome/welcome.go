// Package welcome is the image that a new engine has from the start, so that
// the first container needs no registry.
package welcome

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"io"
	"io/fs"

	"github.com/berth-project/berth/core/image"
)

//go:embed all:rootfs
var files embed.FS

// Library is what the image is given to.
type Library interface {
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) (string, error)
}

// Load gives the image to a library. A berthd that was built without the
// Makefile has none to give, which is no error.
func Load(ctx context.Context, l Library) error {
	program, err := fs.ReadFile(files, "rootfs/welcome")
	if err != nil {
		return nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "welcome", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err = l.Import(ctx, &b, image.ImportOptions{
		Reference: "welcome", Source: "berthd", Message: "the page that Berth brings along",
		Changes: []string{`ENTRYPOINT ["/welcome"]`, "EXPOSE 8080", "USER 65534"},
	})
	return err
}
