// Package holes tells archives' entries that are stored with holes: a few bytes
// of such an archive unpack to as much as it says.
package holes

import (
	"archive/tar"
	"strings"
)

// In tells whether an entry says where its file is empty (GNU tar --sparse).
func In(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}
