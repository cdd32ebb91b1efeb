// Package scanner is the image whose program lists what a built image holds.
// The daemon brings it along, so that an SBOM needs no registry.
package scanner

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"io/fs"
	"sync"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/engine/buildkit"
	"github.com/berth-project/berth/lib/fault"
)

//go:embed all:rootfs
var files embed.FS

// Library is what the image is given to.
type Library interface {
	Resolve(ctx context.Context, ref, platform string) (container.ImageInfo, error)
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) (string, error)
}

// Scanner gives the image to a library when it is wanted.
type Scanner struct {
	images Library
	mu     sync.Mutex // one import at a time
}

// New makes a scanner over a library.
func New(l Library) *Scanner { return &Scanner{images: l} }

// Image gives the reference of the image, which is in the library then. The
// tag is the program's digest: an image of another daemon's program stays apart.
func (s *Scanner) Image(ctx context.Context) (string, error) {
	program, err := fs.ReadFile(files, "rootfs/sbom-scanner")
	if err != nil {
		return "", fault.Unsupportedf("this berthd was built without its scanner of packages: build it with make, or name another with --attest type=sbom,generator=IMAGE")
	}
	sum := sha256.Sum256(program)
	ref := buildkit.ScannerImage + ":" + hex.EncodeToString(sum[:6])
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.images.Resolve(ctx, ref, ""); err == nil {
		return ref, nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "sbom-scanner", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}); err != nil {
		return "", err
	}
	if _, err := w.Write(program); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	_, err = s.images.Import(ctx, &b, image.ImportOptions{
		Reference: ref, Source: "berthd", Message: "lists the packages of built images", Changes: []string{`ENTRYPOINT ["/sbom-scanner"]`},
	})
	return ref, err
}
