//go:build !cgo || !seccomp

package filter

import "errors"

// Use does nothing: this program cannot load filters.
func Use() {}

func compile() error { return errors.New("this program was built without seccomp") }
