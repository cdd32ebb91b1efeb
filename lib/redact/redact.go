// Package redact takes credentials out of texts that are shown, logged or kept.
package redact

import (
	"regexp"
	"strings"
)

// mask stands for a name or a password.
const mask = "xxxxx"

// authority is the beginning of an address up to the last @ before its path.
var authority = regexp.MustCompile(`\b([A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s"'<>\\]*)@`)

// URLs masks the user and the password of every address in a text:
// https://me:secret@host/x becomes https://xxxxx:xxxxx@host/x. Users of ssh://
// are no secret and stay, their passwords do not.
func URLs(text string) string {
	return authority.ReplaceAllStringFunc(text, func(found string) string {
		m := authority.FindStringSubmatch(found)
		scheme, who := m[1], m[2]
		name, _, hasPassword := strings.Cut(who, ":")
		switch {
		case scheme != "ssh://" && name != "":
			name = mask
		case scheme != "ssh://" && !hasPassword:
			return found
		}
		if hasPassword {
			name += ":" + mask
		}
		return scheme + name + "@"
	})
}
