// Package sbom lists the packages that are installed in a root file system, as
// their own managers and builders have written them down: dpkg, apk, Go, Python,
// npm and RubyGems. It must not know who asks, nor containers.
package sbom

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Limits of a scan.
const (
	maxPackages = 200_000
	maxText     = 16 << 20  // of a file about one package, in bytes
	maxDatabase = 256 << 20 // of a package manager's list, in bytes
	maxLine     = 1 << 20
	maxPlaces   = 5 // that are named of one package
)

// Package is one that is installed.
type Package struct {
	Type       string // of a package URL: deb, apk, golang, pypi, npm, gem
	Name       string // with its namespace, as in "@types/node"
	Version    string
	Qualifiers map[string]string // of the package URL
	Licence    string            // as its authors say it, or ""
	Places     []string          // files that say so, absolute; maxPlaces at most
	More       int               // further ones
}

// Result is what a root holds.
type Result struct {
	OS       OS
	Packages []Package // sorted by package URL
	Unread   []string  // databases of managers that are not known here
}

// OS is what os-release(5) says; all may be "".
type OS struct{ ID, Version, Name string }

// Scan looks through a root. Files that are not what their names say are left
// out; only what cannot be read at all is an error.
func Scan(root fs.FS) (Result, error) {
	s := &scan{root: root, found: map[string]*Package{}}
	s.r.OS = readOS(root)
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !fs.ValidPath(name) && d.IsDir():
			return fs.SkipDir // not UTF-8: no manager has such files
		case !fs.ValidPath(name), !d.Type().IsRegular():
			return nil
		}
		return s.file(name, d)
	})
	if err != nil {
		return Result{}, err
	}
	for _, p := range s.found {
		s.r.Packages = append(s.r.Packages, *p)
	}
	slices.SortFunc(s.r.Packages, func(a, b Package) int { return strings.Compare(a.URL(), b.URL()) })
	slices.Sort(s.r.Unread)
	return s.r, nil
}

type scan struct {
	root  fs.FS
	r     Result
	found map[string]*Package // by URL
}

// file reads a file if it tells of packages.
func (s *scan) file(name string, d fs.DirEntry) error {
	base, dir := path.Base(name), path.Dir(name)
	switch {
	case name == "var/lib/dpkg/status", dir == "var/lib/dpkg/status.d" && !strings.HasSuffix(base, ".md5sums"):
		return s.read(name, maxDatabase, s.dpkg)
	case name == "lib/apk/db/installed", name == "usr/lib/apk/db/installed":
		return s.read(name, maxDatabase, s.apk)
	case strings.HasSuffix(dir, ".dist-info") && base == "METADATA", strings.HasSuffix(dir, ".egg-info") && base == "PKG-INFO", strings.HasSuffix(base, ".egg-info"):
		return s.read(name, maxText, s.python)
	case base == "package.json" && ofModule(dir):
		return s.read(name, maxText, s.npm)
	case path.Base(dir) == "specifications" && strings.HasSuffix(base, ".gemspec"):
		return s.gem(name)
	case slices.Contains(rpm, name):
		s.r.Unread = append(s.r.Unread, "/"+name)
		return nil
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	if info.Mode()&0o111 != 0 {
		return s.program(name)
	}
	return nil
}

// rpm are the places of RPM's database.
var rpm = []string{
	"var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "var/lib/rpm/Packages.db",
	"usr/lib/sysimage/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/Packages", "usr/lib/sysimage/rpm/Packages.db",
}

// errFull ends a scan.
var errFull = fmt.Errorf("more than %d packages", maxPackages)

// add notes a package that a file tells of. One without a name or a version is
// none.
func (s *scan) add(p Package, place string) error {
	if p.Name == "" || p.Version == "" {
		return nil
	}
	place = "/" + place
	url := p.URL()
	have := s.found[url]
	switch {
	case have == nil:
		if len(s.found) >= maxPackages {
			return errFull
		}
		p.Places = []string{place}
		s.found[url] = &p
	case slices.Contains(have.Places, place):
	case len(have.Places) < maxPlaces:
		have.Places = append(have.Places, place)
	default:
		have.More++
	}
	return nil
}

// read hands a file to what knows its format. A file that is not of the format
// ends there: what was read of it stays.
func (s *scan) read(name string, limit int64, parse func(name string, r io.Reader) error) error {
	f, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := parse(name, io.LimitReader(f, limit)); errors.Is(err, errFull) {
		return err
	}
	return nil
}

// readOS reads os-release(5).
func readOS(root fs.FS) OS {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := root.Open(name)
		if err != nil {
			continue
		}
		var o OS
		lines := bufio.NewScanner(io.LimitReader(f, maxText))
		for lines.Scan() {
			key, value, _ := strings.Cut(lines.Text(), "=")
			value = strings.Trim(strings.TrimSpace(value), `"'`)
			switch key {
			case "ID":
				o.ID = value
			case "VERSION_ID":
				o.Version = value
			case "PRETTY_NAME":
				o.Name = value
			}
		}
		_ = f.Close()
		return o
	}
	return OS{}
}

// URL is the package URL (github.com/package-url/purl-spec).
func (p Package) URL() string {
	var b strings.Builder
	b.WriteString("pkg:" + p.Type)
	for _, part := range strings.Split(p.Name, "/") {
		b.WriteString("/" + escape(part))
	}
	b.WriteString("@" + escape(p.Version))
	var keys []string
	for k, v := range p.Qualifiers {
		if v != "" {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for i, k := range keys {
		b.WriteString(map[bool]string{true: "?", false: "&"}[i == 0] + k + "=" + escape(p.Qualifiers[k]))
	}
	return b.String()
}

// escape leaves what a package URL has as it is.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_~:", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
