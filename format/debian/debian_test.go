package debian

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/google/go-cmp/cmp"
)

func TestVersionsCompareAsDpkgDoes(t *testing.T) {
	// Each list is ascending.
	for _, list := range [][]string{
		{"1.0~rc1", "1.0", "1.0+b1", "1.0.1"},
		{"1.0-1~bpo1", "1.0-1", "1.0-1+deb13u1", "1.0-2"},
		{"9", "10", "1:1", "2:0"},
		{"1.2a", "1.2b", "1.2.0"},
		{"~~", "~~a", "~", "0", "a"},
		{"1.3.dfsg+really1.3.1-1", "1.3.dfsg+really1.3.1-1+deb13u1"},
		{"0.99999999999999999999", "0.100000000000000000000"},
	} {
		for i := range list {
			for k := range list {
				got := Version(list[i]).Compare(Version(list[k]))
				if (got < 0) != (i < k) || (got > 0) != (i > k) {
					t.Errorf("%s against %s: %d", list[i], list[k], got)
				}
			}
		}
	}
	if Version("1.0").Compare("1.00") != 0 || Version("0:1-0").Compare("1") != 0 {
		t.Error("leading zeros, an epoch of 0 and a revision of 0 mean nothing")
	}
}

func TestRelationsAreRead(t *testing.T) {
	got, err := ParseRelations("libc6 (>= 2.38), default-mta | mail-transport-agent, perl:any, x (= 1:2-3) , ")
	want := Relations{{{"libc6", ">=", "2.38"}}, {{Name: "default-mta"}, {Name: "mail-transport-agent"}}, {{Name: "perl"}}, {{"x", "=", "1:2-3"}}}
	if err != nil || !cmp.Equal(got, want) {
		t.Error(err, cmp.Diff(want, got))
	}
	for _, bad := range []string{"a (>= 1", "a (~ 1)", "../b", "a (= )", "A B"} {
		if _, err := ParseRelations(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

const index = `Package: app
Version: 2.0-1
Architecture: amd64
Filename: pool/app.deb
Size: 10
SHA256: 0000000000000000000000000000000000000000000000000000000000000000
Pre-Depends: base
Depends: lib (>= 1.5), mail | mailer, virtual

Package: app
Version: 1.0-1
Architecture: amd64
Filename: pool/app1.deb
Size: 10
SHA256: 0000000000000000000000000000000000000000000000000000000000000000
`

func stanza(name, more string) string {
	return "\nPackage: " + name + "\nVersion: 1.5\nArchitecture: all\nFilename: pool/" + name + ".deb\nSize: 1\nSHA256: " + strings.Repeat("0", 64) + "\n" + more
}

func world(t *testing.T, text string) *Index {
	t.Helper()
	x := NewIndex()
	if err := ReadIndex(strings.NewReader(text), "amd64", func(p *Package) error { x.Add(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return x
}

func names(list []*Package) string {
	var all []string
	for _, p := range list {
		all = append(all, p.Name)
	}
	return strings.Join(all, " ")
}

func TestDependenciesAreResolved(t *testing.T) {
	all := index + stanza("base", "Essential: yes\n") + stanza("lib", "Depends: base\n") + stanza("mailer", "Provides: mail (= 9)\n") +
		stanza("zeta", "Provides: virtual\nPriority: optional\n") + stanza("alpha", "Provides: virtual\nPriority: extra\n")
	x := world(t, all)
	got, err := Resolve(x, []string{"app"}, nil)
	if err != nil || names(got) != "base lib mailer zeta app" {
		t.Error(names(got), err)
	}
	if got[len(got)-1].Version != "2.0-1" {
		t.Error("not the newest version")
	}
	for range 20 {
		again, _ := Resolve(world(t, all), []string{"app"}, nil)
		if names(again) != names(got) {
			t.Fatal("another answer for the same question:", names(again))
		}
	}
	t.Run("what is installed is not chosen again", func(t *testing.T) {
		got, err := Resolve(x, []string{"app"}, []*Package{x.Get("base"), x.Get("alpha")})
		if err != nil || names(got) != "lib mailer app" {
			t.Error(names(got), err)
		}
	})
	t.Run("what nobody provides is named", func(t *testing.T) {
		_, err := Resolve(world(t, stanza("a", "Depends: b (>= 3) | c\n")+stanza("b", "")), []string{"a"}, nil)
		if err == nil || !strings.Contains(err.Error(), "a 1.5 needs b (>= 3) | c") {
			t.Error(err)
		}
	})
	t.Run("packages that exclude one another are refused", func(t *testing.T) {
		_, err := Resolve(world(t, stanza("a", "Conflicts: b\n")+stanza("b", "")), []string{"a", "b"}, nil)
		if err == nil || !strings.Contains(err.Error(), "exclude") {
			t.Error(err)
		}
	})
	t.Run("circles end", func(t *testing.T) {
		got, err := Resolve(world(t, stanza("a", "Depends: b\n")+stanza("b", "Depends: a\n")), []string{"a"}, nil)
		if err != nil || names(got) != "b a" {
			t.Error(names(got), err)
		}
	})
	t.Run("Pre-Depends come in an earlier batch with what they need", func(t *testing.T) {
		got, err := Resolve(world(t, stanza("a", "Pre-Depends: b\n")+stanza("b", "Depends: c\n")+stanza("c", "")), []string{"a"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		batches := Batches(got)
		if len(batches) != 2 || names(batches[0]) != "c b" || names(batches[1]) != "a" {
			t.Error(batches)
		}
	})
}

func TestABadIndexIsRefused(t *testing.T) {
	for _, bad := range []string{
		strings.Replace(index, "pool/app.deb", "../../etc/app.deb", 1),
		strings.Replace(index, "Size: 10", "Size: -1", 1),
		strings.Replace(index, "SHA256: 00", "SHA256: zz", 1),
		strings.Replace(index, "Package: app", "Package: ../app", 1),
		" continuation first\n",
		"no colon\n",
	} {
		if err := ReadIndex(strings.NewReader(bad), "amd64", func(*Package) error { return nil }); err == nil {
			t.Errorf("read:\n%s", bad)
		}
	}
}

// pack makes a .deb of two archives.
func pack(control, data []byte) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", control}, {"data.tar.gz", data}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 1700000000, 0, 0, "100644", len(m.body))
		b.Write(m.body)
		if len(m.body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// deb builds a .deb for tests.
func deb(control string, files ...tar.Header) []byte {
	archive := func(headers []tar.Header, bodies ...string) []byte {
		var z bytes.Buffer
		g := gzip.NewWriter(&z)
		w := tar.NewWriter(g)
		for i, h := range headers {
			if i < len(bodies) {
				h.Size = int64(len(bodies[i]))
			}
			_ = w.WriteHeader(&h)
			if i < len(bodies) {
				_, _ = io.WriteString(w, bodies[i])
			}
		}
		_ = w.Close()
		_ = g.Close()
		return z.Bytes()
	}
	return pack(archive([]tar.Header{{Name: "./control", Typeflag: tar.TypeReg}}, control), archive(files))
}

func list(b []byte) ([]string, error) {
	d, err := OpenDeb(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var all []string
	err = d.Files(func(h *tar.Header, body io.Reader) error {
		all = append(all, h.Name)
		_, err := io.Copy(io.Discard, body)
		return err
	})
	return all, err
}

func TestADebIsRead(t *testing.T) {
	b := deb("Package: a\nVersion: 1\n", tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "./usr/", Typeflag: tar.TypeDir}, tar.Header{Name: "./usr/a", Typeflag: tar.TypeReg})
	got, err := list(b)
	if err != nil || !cmp.Equal(got, []string{"usr", "usr/a"}) {
		t.Error(got, err)
	}
	when, err := DebTime(bytes.NewReader(b))
	if err != nil || when.Unix() != 1700000000 {
		t.Error(when, err)
	}
	d, err := OpenDeb(bytes.NewReader(b))
	if err != nil || d.Control.Get("Package") != "a" {
		t.Error(d, err)
	}
}

func TestAHostileDebIsRefused(t *testing.T) {
	good := deb("Package: a\n", tar.Header{Name: "a", Typeflag: tar.TypeReg})
	for name, b := range map[string][]byte{
		"leaves the root":  deb("Package: a\n", tar.Header{Name: "../a", Typeflag: tar.TypeReg}),
		"link that leaves": deb("Package: a\n", tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"}),
		"device":           deb("Package: a\n", tar.Header{Name: "a", Typeflag: tar.TypeBlock}),
		"cut short":        good[:len(good)-20],
		"not an archive":   []byte("#!/bin/sh"),
		"two paragraphs":   deb("Package: a\n\nPackage: b\n"),
	} {
		if _, err := list(b); err == nil {
			t.Error(name, "was read")
		}
	}
}

func TestADebWithHugeHolesIsRefused(t *testing.T) {
	dir := t.TempDir()
	holes := func(size int64) []byte {
		if err := os.WriteFile(filepath.Join(dir, "control"), []byte("Package: a\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "holes"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "holes"), size); err != nil {
			t.Fatal(err)
		}
		b, err := exec.Command("tar", "--sparse", "--format=pax", "-C", dir, "-c", "control", "holes").Output()
		if err != nil || len(b) > 1<<20 {
			t.Fatal(len(b), err)
		}
		return b
	}
	small := holes(1 << 10)
	if _, err := list(pack(small, small)); err != nil {
		t.Error("small holes:", err)
	}
	if _, err := list(pack(holes(maxControl+1), small)); !errors.Is(err, errTooLarge) {
		t.Error("control archive:", err)
	}
	if _, err := list(pack(small, holes(maxData+1))); !errors.Is(err, errTooLarge) {
		t.Error("data archive:", err)
	}
}

func TestALongFieldIsReadInTime(t *testing.T) {
	const lines = 400_000
	text := "Package: a\nDepends: x\n" + strings.Repeat(" y\n", lines) + "Source: b\n"
	var got Stanza
	if err := ReadStanzas(strings.NewReader(text), nil, func(s Stanza) error { got = s; return nil }); err != nil {
		t.Fatal(err)
	}
	if want := "x" + strings.Repeat("\ny", lines); got.Get("Depends") != want || got.Get("Source") != "b" || got.Get("Package") != "a" {
		t.Errorf("%d bytes of %d", len(got.Get("Depends")), len(want))
	}
}

func sign(t *testing.T, e *openpgp.Entity, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, e.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

func TestOnlySignedReleasesAreRead(t *testing.T) {
	ours, err := openpgp.NewEntity("archive", "", "a@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := openpgp.NewEntity("other", "", "b@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	text := "Codename: trixie\nSuite: stable\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nSHA256:\n " + strings.Repeat("a", 64) + " 5 main/binary-amd64/Packages.gz\n"
	keys := openpgp.EntityList{ours}
	now := time.Now()
	r, err := ReadInRelease(sign(t, ours, text), keys, now)
	if err != nil || r.Codename != "trixie" || r.Files["main/binary-amd64/Packages.gz"].Size != 5 {
		t.Error(r, err)
	}
	if _, err := ReadInRelease(sign(t, other, text), keys, now); err == nil {
		t.Error("a signature of an unknown key was taken")
	}
	if _, err := ReadInRelease(bytes.Replace(sign(t, ours, text), []byte(" 5 main"), []byte(" 6 main"), 1), keys, now); err == nil {
		t.Error("a changed text was taken")
	}
	if _, err := ReadInRelease(append([]byte("Codename: evil\n\n"), sign(t, ours, text)...), openpgp.EntityList{other}, now); err == nil {
		t.Error("text before the signed part was taken")
	}
	if _, err := ReadInRelease([]byte(text), keys, now); err == nil {
		t.Error("an unsigned text was taken")
	}
	expired := strings.Replace(text, "SHA256:", "Valid-Until: Sat, 21 Nov 2020 09:15:44 UTC\nSHA256:", 1)
	if _, err := ReadInRelease(sign(t, ours, expired), keys, now); err == nil {
		t.Error("an expired release was taken")
	}
}

func FuzzDeb(f *testing.F) {
	f.Add(deb("Package: a\nVersion: 1\n", tar.Header{Name: "./usr/a", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := list(b)
		for _, name := range all {
			if err == nil && (strings.HasPrefix(name, "/") || strings.HasPrefix(name, "..")) {
				t.Errorf("%q leaves the root", name)
			}
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(index))
	f.Fuzz(func(t *testing.T, b []byte) {
		x := NewIndex()
		var first string
		err := ReadIndex(bytes.NewReader(b), "amd64", func(p *Package) error {
			if strings.HasPrefix(p.Filename, "/") || strings.HasPrefix(p.Filename, "..") {
				t.Errorf("%q leaves the mirror", p.Filename)
			}
			if first == "" {
				first = p.Name
			}
			x.Add(p)
			return nil
		})
		if err == nil && first != "" {
			if list, err := Resolve(x, []string{first}, nil); err == nil {
				n := 0
				for _, b := range Batches(list) {
					n += len(b)
				}
				if n != len(list) {
					t.Errorf("batches hold %d of %d packages", n, len(list))
				}
			}
		}
	})
}

func FuzzVersion(f *testing.F) {
	f.Add("1:2.0-1", "1.0~rc1")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := Version(a).Compare(Version(b)), Version(b).Compare(Version(a))
		if (x < 0) != (y > 0) || (x == 0) != (y == 0) {
			t.Errorf("%q and %q: %d and %d", a, b, x, y)
		}
	})
}

func FuzzInRelease(f *testing.F) {
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nCodename: a\n-----BEGIN PGP SIGNATURE-----\n\n=AfjX\n-----END PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ReadInRelease(b, nil, time.Now()); err == nil {
			t.Error("taken without a key:", r)
		}
	})
}
