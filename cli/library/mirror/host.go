package mirror

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/format/debian"
)

// Debian's own addresses, where the host's apt names none.
const (
	debianMain     = "http://deb.debian.org/debian"
	debianSecurity = "http://deb.debian.org/debian-security"
)

// hostMirrors gives the addresses of Debian's archives that the host's apt uses.
func hostMirrors() (main, security string) {
	main, security = debianMain, debianSecurity
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, f := range append(files, "/etc/apt/sources.list") {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, u := range addresses(f, text) {
			switch {
			case strings.HasSuffix(u, "/debian"):
				main = u
			case strings.HasSuffix(u, "/debian-security"):
				security = u
			}
		}
	}
	return main, security
}

// addresses lists the http addresses of an apt source file, either format.
func addresses(name string, text []byte) []string {
	var all []string
	take := func(words []string) {
		for _, w := range words {
			if w = strings.TrimRight(w, "/"); strings.HasPrefix(w, "http://") || strings.HasPrefix(w, "https://") {
				all = append(all, w)
			}
		}
	}
	if strings.HasSuffix(name, ".sources") {
		_ = debian.ReadStanzas(bytes.NewReader(text), nil, func(s debian.Stanza) error {
			if slices.Contains(strings.Fields(s.Get("Types")), "deb") && s.Get("Enabled") != "no" {
				take(strings.Fields(s.Get("URIs")))
			}
			return nil
		})
		return all
	}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "deb" {
			take(f[1:])
		}
	}
	return all
}
