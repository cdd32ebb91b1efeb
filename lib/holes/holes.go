// Package holes tells archives' entries that are stored with holes: a few bytes
// of such an archive unpack to as much as it says.
package holes

import (
	"archive/tar"
	"strings"
)

// Limit bounds a file that is stored with holes where such files are taken at all, in bytes.
const Limit = 1 << 30

// TooLarge tells whether an entry is stored with holes and beyond the limit.
func TooLarge(h *tar.Header) bool { return h.Size > Limit && In(h) }

// In tells whether an entry says where its file is empty (GNU tar --sparse).
func In(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}
