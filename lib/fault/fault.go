// Package fault holds the one structured error of Berth: a class (of
// containerd/errdefs), the noun and the id it is about, and a message for
// people. It knows no status codes and no client's wording: a door's
// dialect.go translates.
package fault

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// The classes of errors, an alias for errdefs' so callers need one import.
var (
	ErrInvalid            = errdefs.ErrInvalidArgument
	ErrNotFound           = errdefs.ErrNotFound
	ErrExists             = errdefs.ErrAlreadyExists
	ErrConflict           = errdefs.ErrConflict
	ErrNotModified        = errdefs.ErrNotModified
	ErrPermission         = errdefs.ErrPermissionDenied
	ErrUnauthenticated    = errdefs.ErrUnauthenticated
	ErrFailedPrecondition = errdefs.ErrFailedPrecondition
	ErrUnsupported        = errdefs.ErrNotImplemented
	ErrUnavailable        = errdefs.ErrUnavailable
	ErrExhausted          = errdefs.ErrResourceExhausted
	ErrInternal           = errdefs.ErrInternal
)

// Error is what core services return for everything a caller can act on.
type Error struct {
	Class error  // one of the classes above
	Noun  string // "container", "image", "network", "volume", "exec", or ""
	ID    string // the id or name the caller used, or ""
	Msg   string // a whole sentence fragment; "" lets the door word it from Class, Noun and ID
	Err   error  // the cause, or nil
}

// Error words the error for logs: message, else class and noun, then cause.
func (e *Error) Error() string {
	msg := e.Msg
	if msg == "" {
		msg = e.Noun + " " + e.ID + ": " + e.Class.Error()
	}
	if e.Err != nil {
		if cause := e.Err.Error(); cause != "" {
			msg += ": " + cause
		}
	}
	return msg
}

// Unwrap gives the class and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Err}
}

// NotFound says that no such noun has this id or name.
func NotFound(noun, id string) error {
	return &Error{Class: ErrNotFound, Noun: noun, ID: id}
}

// Invalidf is an error of the caller's input.
func Invalidf(format string, args ...any) error { return newf(ErrInvalid, format, args...) }

// Conflictf is an error of the object's present state.
func Conflictf(format string, args ...any) error { return newf(ErrConflict, format, args...) }

// NotModifiedf says that nothing had to be done.
func NotModifiedf(format string, args ...any) error { return newf(ErrNotModified, format, args...) }

// Forbiddenf says that the effect is not allowed to this caller.
func Forbiddenf(format string, args ...any) error { return newf(ErrPermission, format, args...) }

// Unauthenticatedf says that whoever asks must first say who they are.
func Unauthenticatedf(format string, args ...any) error {
	return newf(ErrUnauthenticated, format, args...)
}

// Unsupportedf names something that Berth, or this host, does not do.
func Unsupportedf(format string, args ...any) error { return newf(ErrUnsupported, format, args...) }

// Unavailablef says that something needed does not answer now.
func Unavailablef(format string, args ...any) error { return newf(ErrUnavailable, format, args...) }

// Internalf is a failure of Berth or of the host, not of the caller.
func Internalf(format string, args ...any) error { return newf(ErrInternal, format, args...) }

// NotFoundf is NotFound with a message of its own.
func NotFoundf(format string, args ...any) error { return newf(ErrNotFound, format, args...) }

func newf(class error, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: class, Msg: err.Error(), Err: quiet{errors.Unwrap(err)}.orNil()}
}

// quiet keeps a cause for errors.Is without printing it twice.
type quiet struct{ error }

func (q quiet) orNil() error {
	if q.error == nil {
		return nil
	}
	return q
}
func (q quiet) Error() string { return "" }
func (q quiet) Unwrap() error { return q.error }
