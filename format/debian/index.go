package debian

import (
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// Limits of an index.
const (
	maxPackages    = 500_000
	maxPackageSize = 16 << 30 // of a .deb, in bytes
)

// Package is one binary package that a mirror offers.
type Package struct {
	Name         string    `json:"name"`
	Version      Version   `json:"version"`
	Architecture string    `json:"architecture"` // "all" or a machine's, such as "amd64"
	Filename     string    `json:"filename"`     // below the mirror's root, slashes
	Size         int64     `json:"size"`         // of the .deb, in bytes
	SHA256       string    `json:"sha256"`       // 64 hex digits
	Source       string    `json:"source,omitempty"`
	Priority     string    `json:"priority,omitempty"`
	Essential    bool      `json:"essential,omitempty"`
	PreDepends   Relations `json:"-"`
	Depends      Relations `json:"-"`
	Conflicts    Relations `json:"-"` // Conflicts and Breaks
	Provides     Relations `json:"-"`
}

var indexFields = []string{"Package", "Version", "Architecture", "Filename", "Size", "SHA256", "Source", "Priority", "Essential",
	"Pre-Depends", "Depends", "Conflicts", "Breaks", "Provides"}

// ReadIndex reads a Packages file (plain) and calls add for every package of
// the architecture or of "all".
func ReadIndex(r io.Reader, architecture string, add func(*Package) error) error {
	n := 0
	return ReadStanzas(r, indexFields, func(s Stanza) error {
		if n++; n > maxPackages {
			return fmt.Errorf("more than %d packages", maxPackages)
		}
		if a := s.Get("Architecture"); a != architecture && a != "all" {
			return nil
		}
		p, err := newPackage(s)
		if err != nil {
			return err
		}
		return add(p)
	})
}

func newPackage(s Stanza) (*Package, error) {
	p := &Package{
		Name: s.Get("Package"), Architecture: s.Get("Architecture"), Filename: s.Get("Filename"), SHA256: s.Get("SHA256"),
		Source: s.Get("Source"), Priority: s.Get("Priority"), Essential: s.Get("Essential") == "yes",
	}
	if !validName(p.Name) {
		return nil, fmt.Errorf("package %q: not a name", p.Name)
	}
	fail := func(err error) (*Package, error) { return nil, fmt.Errorf("package %s: %w", p.Name, err) }
	var err error
	if p.Version, err = ParseVersion(s.Get("Version")); err != nil {
		return fail(err)
	}
	if err := p.Check(); err != nil {
		return fail(err)
	}
	if p.Size, err = strconv.ParseInt(s.Get("Size"), 10, 64); err != nil || p.Size <= 0 || p.Size > maxPackageSize {
		return fail(fmt.Errorf("size %q", s.Get("Size")))
	}
	for _, f := range []struct {
		field string
		to    *Relations
	}{{"Pre-Depends", &p.PreDepends}, {"Depends", &p.Depends}, {"Conflicts", &p.Conflicts}, {"Breaks", &p.Conflicts}, {"Provides", &p.Provides}} {
		list, err := ParseRelations(s.Get(f.field))
		if err != nil {
			return fail(err)
		}
		*f.to = append(*f.to, list...)
	}
	return p, nil
}

// Check says whether the file's name stays below the mirror's root and the
// digest is one.
func (p *Package) Check() error {
	if f := p.Filename; f == "" || path.IsAbs(f) || path.Clean(f) != f || strings.HasPrefix(f, "..") || !strings.HasSuffix(f, ".deb") {
		return fmt.Errorf("file name %q leaves the mirror", f)
	}
	if sum, err := hex.DecodeString(p.SHA256); err != nil || len(sum) != 32 {
		return fmt.Errorf("SHA256 %q is not one", p.SHA256)
	}
	return nil
}

// FromDeb completes a package that is known by name, version and digest with
// the relations that its .deb states. Where the file is another package's, that
// is an error.
func FromDeb(known Package, control Stanza) (*Package, error) {
	if control.Get("Package") != known.Name || control.Get("Version") != string(known.Version) || control.Get("Architecture") != known.Architecture {
		return nil, fmt.Errorf("package %s %s: the file is of %s %s", known.Name, known.Version, control.Get("Package"), control.Get("Version"))
	}
	s := Stanza{}
	for _, f := range indexFields {
		s[strings.ToLower(f)] = control.Get(f)
	}
	s["filename"], s["size"], s["sha256"] = known.Filename, strconv.FormatInt(known.Size, 10), known.SHA256
	p, err := newPackage(s)
	if err == nil {
		// The archive's word counts for these, not the package's own.
		p.Priority, p.Essential = known.Priority, known.Essential
	}
	return p, err
}
