package native

import (
	"io"
	"net/http"
	"strconv"

	"github.com/berth-project/berth/core/build"
)

// skippedHeader tells how many sockets, pipes and devices an archive lacks.
const skippedHeader = "Berth-Skipped"

func (d *Door) mounts(w http.ResponseWriter, r *http.Request) error {
	list, err := d.o.Mounts.CacheMounts(r.Context())
	if err != nil {
		return err
	}
	if list == nil {
		list = []build.CacheMount{}
	}
	answer(w, http.StatusOK, list)
	return nil
}

// exportMounts sends the mounts of all ?id=, or all mounts, as an archive.
func (d *Door) exportMounts(w http.ResponseWriter, r *http.Request) error {
	archive, err := d.o.Mounts.ExportMounts(r.Context(), r.URL.Query()["id"])
	if err != nil {
		return err
	}
	defer archive.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Content-Length", strconv.FormatInt(archive.Size, 10))
	w.Header().Set(skippedHeader, strconv.Itoa(archive.Skipped))
	if _, err := io.Copy(w, archive); err != nil {
		d.o.Logger.Debug("archive of cache mounts not sent", "error", err) // by its length the client sees that it broke off
	}
	return nil
}

// importMounts takes an archive; ?id= renames, ?replace=1 replaces.
func (d *Door) importMounts(w http.ResponseWriter, r *http.Request) error {
	out := http.NewResponseController(w)
	_ = out.EnableFullDuplex()
	q := r.URL.Query()
	list, err := d.o.Mounts.ImportMounts(r.Context(), r.Body, build.MountImport{ID: q.Get("id"), Replace: q.Get("replace") == "1"})
	if err != nil {
		d.fail(w, r, err)
		// A client that still sends reads the answer only where nobody hangs up on it.
		_ = out.Flush()
		_, _ = io.Copy(io.Discard, r.Body)
		return nil
	}
	answer(w, http.StatusOK, list)
	return nil
}
