package remote

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/berth-project/berth/core/build"
)

const mountsPath = "/berth/v1/builder/mounts"

// CacheMounts gives the builder's cache mounts.
func (c *Client) CacheMounts(ctx context.Context) (list []build.CacheMount, err error) {
	return list, c.call(ctx, http.MethodGet, mountsPath, nil, &list)
}

// ExportMounts gives an archive of cache mounts by ids or records, of all where
// none is named. Reading it fails where it breaks off.
func (c *Client) ExportMounts(ctx context.Context, ids []string) (build.MountArchive, error) {
	answer, err := c.do(ctx, http.MethodGet, mountsPath+"/archive?"+url.Values{"id": ids}.Encode(), "", nil)
	if err != nil {
		return build.MountArchive{}, err
	}
	skipped, _ := strconv.Atoi(answer.Header.Get("Berth-Skipped"))
	return build.MountArchive{ReadCloser: answer.Body, Size: answer.ContentLength, Skipped: skipped}, nil
}

// ImportMounts makes cache mounts of an archive, all of them or none.
func (c *Client) ImportMounts(ctx context.Context, archive io.Reader, o build.MountImport) (list []build.CacheMount, err error) {
	q := url.Values{}
	if o.ID != "" {
		q.Set("id", o.ID)
	}
	if o.Replace {
		q.Set("replace", "1")
	}
	// A file is not closed by the transport: it is its owner's.
	answer, err := c.do(ctx, http.MethodPost, mountsPath+"/archive?"+q.Encode(), "application/x-tar", io.NopCloser(archive))
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return list, json.NewDecoder(answer.Body).Decode(&list)
}
