// Package inflate reads streams whatever their compression is. It decides by
// the first bytes, runs no program, and bounds the memory that a hostile
// stream can ask for.
package inflate

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// window bounds the memory of a decompressor, in bytes: `xz -9` and
// `zstd --ultra -22` need 64 and 128 MiB.
const window = 128 << 20

var (
	gzipMagic  = []byte{0x1f, 0x8b, 0x08}
	bzip2Magic = []byte("BZh")
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// NewReader gives the plain bytes of r: gzip, bzip2, xz and zstd are undone,
// anything else passes as it is. Close releases memory; r stays the caller's.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(len(xzMagic))
	if err != nil && len(head) == 0 {
		if err == io.EOF {
			return io.NopCloser(b), nil
		}
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return gzip.NewReader(b)
	case bytes.HasPrefix(head, bzip2Magic):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(head, xzMagic):
		x, err := xz.NewReader(b, window)
		return io.NopCloser(x), err
	case bytes.HasPrefix(head, zstdMagic):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}
