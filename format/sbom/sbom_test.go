package sbom

import (
	"encoding/json"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text), Mode: 0o644} }

// root holds a bit of everything.
func root() fstest.MapFS {
	return fstest.MapFS{
		"etc/os-release": file("PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\nVERSION_ID=\"13\"\n"),
		"var/lib/dpkg/status": file("Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc\nVersion: 2.41-12+deb13u1\n\n" +
			"Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\nPackage: libstdc++6\nStatus: install ok installed\nArchitecture: amd64\nSource: gcc-14 (14.2.0-19)\nVersion: 1:14.2.0-19\n"),
		"var/lib/dpkg/status.d/tzdata":                                 file("Package: tzdata\nVersion: 2026a-0\nArchitecture: all\n"),
		"var/lib/dpkg/status.d/tzdata.md5sums":                         file("0000  usr/share/zoneinfo/UTC\n"),
		"lib/apk/db/installed":                                         file("C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\n\nP:zlib\nV:1.3\nA:x86_64\nL:Zlib\no:zlib-src\n"),
		"usr/lib/p/My_Pkg-1.0.dist-info/METADATA":                      file("Metadata-Version: 2.1\nName: My_Pkg.x\nVersion: 1.0\nLicense: MIT\n\nName: not this\n"),
		"usr/lib/p/old.egg-info":                                       file("Name: old\nVersion: 2\n"),
		"app/node_modules/@types/node/package.json":                    file(`{"name":"@types/node","version":"24.1.0","license":"MIT"}`),
		"app/node_modules/x/package.json":                              file(`{"name":"x","version":"1.0.0","license":{"type":"BSD"}}`),
		"app/node_modules/x/test/package.json":                         file(`{"name":"fixture","version":"9"}`),
		"app/package.json":                                             file(`{"name":"app","version":"0.1"}`),
		"gems/specifications/rack-3.1.2.gemspec":                       file("Gem::Specification.new"),
		"gems/specifications/nokogiri-1.18.0-x86_64-linux-gnu.gemspec": file(""),
		"var/lib/rpm/rpmdb.sqlite":                                     file("SQLite"),
		"bin/text":                                                     &fstest.MapFile{Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"bin/elf":                                                      &fstest.MapFile{Data: []byte("\x7fELF and then nothing"), Mode: 0o755},
	}
}

func urls(r Result) []string {
	var list []string
	for _, p := range r.Packages {
		list = append(list, p.URL())
	}
	return list
}

func TestPackagesOfAllManagersAreFound(t *testing.T) {
	r, err := Scan(root())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"pkg:apk/debian/musl@1.2.5-r0?arch=x86_64&distro=debian-13",
		"pkg:apk/debian/zlib@1.3?arch=x86_64&distro=debian-13&upstream=zlib-src",
		"pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64&distro=debian-13&upstream=glibc",
		"pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-19",
		"pkg:deb/debian/tzdata@2026a-0?arch=all&distro=debian-13",
		"pkg:gem/nokogiri@1.18.0?platform=x86_64-linux-gnu",
		"pkg:gem/rack@3.1.2",
		"pkg:npm/%40types/node@24.1.0",
		"pkg:npm/x@1.0.0",
		"pkg:pypi/my-pkg-x@1.0",
		"pkg:pypi/old@2",
	}
	if d := cmp.Diff(want, urls(r)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"/var/lib/rpm/rpmdb.sqlite"}, r.Unread); d != "" {
		t.Error(d)
	}
	if r.OS != (OS{"debian", "13", "Debian GNU/Linux 13 (trixie)"}) {
		t.Errorf("%+v", r.OS)
	}
}

func TestModulesOfGoProgramsAreFoundOnce(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.MapFS{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		m["bin/"+name] = &fstest.MapFile{Data: text, Mode: 0o755}
	}
	m["bin/not-executable"] = &fstest.MapFile{Data: text, Mode: 0o644}
	r, err := Scan(m)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Packages, func(p Package) bool { return p.Name == "stdlib" })
	if i < 0 || !strings.HasPrefix(r.Packages[i].URL(), "pkg:golang/stdlib@1.") || len(r.Packages[i].Places) != maxPlaces || r.Packages[i].More != 2 {
		t.Fatalf("%+v", r.Packages)
	}
	if !slices.ContainsFunc(urls(r), func(u string) bool { return strings.HasPrefix(u, "pkg:golang/github.com/berth-project/berth@") }) {
		t.Error(urls(r))
	}
}

func TestTheDocumentIsWhole(t *testing.T) {
	r, err := Scan(root())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b, err := r.Statement("sbom", "test-1", now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Statement("sbom", "test-1", now)
	if err != nil || string(again) != string(b) {
		t.Error("the same root gives another text", err)
	}
	var s struct {
		Type      string `json:"_type"`
		Predicate document
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	d := s.Predicate
	if s.Type != statement || d.Creation.Created != "2026-01-02T03:04:05Z" || !strings.Contains(d.Comment, "rpmdb") || !strings.HasPrefix(d.Namespace, "https://") {
		t.Errorf("%s %+v", s.Type, d)
	}
	ids := map[string]bool{d.ID: true}
	for _, p := range d.Packages {
		if ids[p.ID] {
			t.Errorf("%s twice", p.ID)
		}
		ids[p.ID] = true
	}
	if len(d.Packages) != len(r.Packages)+2 || len(d.Relationships) != len(d.Packages) {
		t.Errorf("%d packages, %d relationships", len(d.Packages), len(d.Relationships))
	}
	for _, rel := range d.Relationships {
		if !ids[rel.From] || !ids[rel.To] {
			t.Errorf("%+v leads nowhere", rel)
		}
	}
}

// FuzzScan: whatever the files hold, a scan ends, and its document can be read.
func FuzzScan(f *testing.F) {
	for name, m := range root() {
		f.Add(name, m.Data)
	}
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		if !fs.ValidPath(name) || name == "." {
			return
		}
		r, err := Scan(fstest.MapFS{name: &fstest.MapFile{Data: text, Mode: 0o755}, "etc/os-release": file(string(text))})
		if err != nil {
			return // a name below a file
		}
		b, err := r.Statement("x", "y", time.Unix(0, 0))
		if err != nil || !json.Valid(b) {
			t.Fatal(err)
		}
	})
}
