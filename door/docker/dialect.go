package docker

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/berth-project/berth/lib/fault"
)

// missing finds what says that a noun is not there, and leaves the wording to us.
func missing(err error) *fault.Error {
	var f *fault.Error
	for errors.As(err, &f) {
		if f.Msg == "" && errors.Is(f.Class, fault.ErrNotFound) {
			return f
		}
		err = f.Err
	}
	return nil
}

// dialect words an error as Docker's clients expect it. They match these texts.
func dialect(err error) (status int, text string) {
	text = err.Error()
	if f := missing(err); f != nil {
		said := ""
		switch f.Noun {
		case "container":
			said = "No such container: " + f.ID
		case "image":
			said = "No such image: " + f.ID
		case "network":
			said = "network " + f.ID + " not found"
		case "volume":
			said = "get " + f.ID + ": no such volume"
		case "exec":
			said = "No such exec instance: " + f.ID
		}
		if said != "" {
			text = strings.Replace(text, f.Error(), said, 1)
		}
	}
	switch {
	case errors.Is(err, fault.ErrNotModified):
		return http.StatusNotModified, ""
	case errors.Is(err, fault.ErrInvalid):
		status = http.StatusBadRequest
	case errors.Is(err, fault.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, fault.ErrConflict), errors.Is(err, fault.ErrExists):
		status = http.StatusConflict
	case errors.Is(err, fault.ErrPermission):
		status = http.StatusForbidden
	case errors.Is(err, fault.ErrUnauthenticated):
		status = http.StatusUnauthorized
	case errors.Is(err, fault.ErrUnsupported):
		status = http.StatusNotImplemented
	case errors.Is(err, fault.ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.Is(err, context.Canceled):
		status = 499 // the client has gone
	default:
		status = http.StatusInternalServerError
	}
	// Docker answers a start that failed for the program's sake with 400 or 404.
	if strings.Contains(text, "OCI runtime create failed") {
		status = http.StatusBadRequest
	}
	return status, text
}
