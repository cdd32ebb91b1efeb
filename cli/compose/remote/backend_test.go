package remote

import (
	"net/http"
	"net/http/cgi"
)

// backend is git's own HTTP server for the repositories below a folder.
func backend(program, top string) http.Handler {
	return &cgi.Handler{Path: program, Env: []string{"GIT_PROJECT_ROOT=" + top, "GIT_HTTP_EXPORT_ALL=1"}}
}
