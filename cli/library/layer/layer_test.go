package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var epoch = time.Unix(1_700_000_000, 0).UTC()

func tree(t *testing.T, headers ...tar.Header) *Tree {
	t.Helper()
	x, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	for _, h := range headers {
		body := h.Uname // tests put the body here
		h.Uname, h.Size = "", int64(len(body))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := x.Add(&h, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func written(t *testing.T, x *Tree) ([]byte, []string) {
	t.Helper()
	var b bytes.Buffer
	if err := x.Write(&b, epoch); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for r := tar.NewReader(bytes.NewReader(b.Bytes())); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.After(epoch) {
			t.Errorf("%s is younger than the epoch", h.Name)
		}
		body, _ := io.ReadAll(r)
		lines = append(lines, strings.TrimSpace(h.Name+" "+h.Linkname+" "+string(body)))
	}
	return b.Bytes(), lines
}

func TestTheOrderOfEntriesDoesNotMatter(t *testing.T) {
	a, lines := written(t, tree(t,
		tar.Header{Name: "b", Uname: "two", ModTime: time.Now()}, tar.Header{Name: "a", Uname: "one"}))
	b, _ := written(t, tree(t,
		tar.Header{Name: "./a", Uname: "one"}, tar.Header{Name: "b", Uname: "two", ModTime: time.Now().Add(time.Hour)}))
	if !bytes.Equal(a, b) || !cmp.Equal(lines, []string{"a  one", "b  two"}) {
		t.Error(lines)
	}
}

func TestHardLinksFollowTheirFile(t *testing.T) {
	_, lines := written(t, tree(t,
		tar.Header{Name: "z", Uname: "body"}, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "z"}, tar.Header{Name: "m", Typeflag: tar.TypeLink, Linkname: "z"}))
	if !cmp.Equal(lines, []string{"a  body", "m a", "z a"}) {
		t.Error(lines)
	}
}

func TestFilesGoThroughLinkedFolders(t *testing.T) {
	_, lines := written(t, tree(t,
		tar.Header{Name: "usr", Typeflag: tar.TypeDir}, tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"},
		tar.Header{Name: "evil", Typeflag: tar.TypeSymlink, Linkname: "../../.."},
		tar.Header{Name: "lib/x", Uname: "1"}, tar.Header{Name: "evil/y", Uname: "2"}, tar.Header{Name: "lib", Typeflag: tar.TypeDir}))
	if !cmp.Equal(lines, []string{"evil ../../..", "lib usr/lib", "usr/", "usr/lib/x  1", "y  2"}) {
		t.Error(lines)
	}
}

func TestCirclesOfLinksEnd(t *testing.T) {
	x := tree(t, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"}, tar.Header{Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a"})
	if err := x.Add(&tar.Header{Name: "a/c", Typeflag: tar.TypeDir}, nil); err == nil {
		t.Error("a circle was followed")
	}
	if err := x.Add(&tar.Header{Name: "../c", Typeflag: tar.TypeDir}, nil); err == nil {
		t.Error("an entry left the root")
	}
}

func TestWhatARunLeavesBehindGoes(t *testing.T) {
	x := tree(t,
		tar.Header{Name: "var/log/dpkg.log", Uname: "now"}, tar.Header{Name: "var/log/apt", Typeflag: tar.TypeDir},
		tar.Header{Name: "var/log/access.log", Typeflag: tar.TypeSymlink, Linkname: "/dev/stdout"},
		tar.Header{Name: "etc/machine-id", Uname: "1"}, tar.Header{Name: "var/lib/dpkg/status-old", Uname: "x"}, tar.Header{Name: "var/lib/dpkg/status", Uname: "x"},
		tar.Header{Name: "etc/ssl/private/ssl-cert-snakeoil.key", Uname: "key"}, tar.Header{Name: "etc/ssl/certs/0a1b2c.0", Typeflag: tar.TypeSymlink, Linkname: "ssl-cert-snakeoil.pem"},
		tar.Header{Name: "etc/shadow", Uname: "root:*:20000:0:99999:7:::\n"})
	if err := x.Tidy(epoch); err != nil {
		t.Fatal(err)
	}
	_, lines := written(t, x)
	want := []string{"etc/shadow  root:*:19675:0:99999:7:::", "var/lib/dpkg/status  x", "var/log/access.log /dev/stdout", "var/log/apt/"}
	if !cmp.Equal(lines, want) {
		t.Error(cmp.Diff(want, lines))
	}
}

func TestAPartIsCopied(t *testing.T) {
	from := tree(t, tar.Header{Name: "out", Typeflag: tar.TypeDir}, tar.Header{Name: "out/bin/a", Uname: "1"}, tar.Header{Name: "out/bin/b", Typeflag: tar.TypeLink, Linkname: "out/bin/a"}, tar.Header{Name: "outer", Uname: "2"})
	to := tree(t)
	if err := from.CopyTo(to, "/out", "/"); err != nil {
		t.Fatal(err)
	}
	if _, lines := written(t, to); !cmp.Equal(lines, []string{"bin/a  1", "bin/b bin/a"}) {
		t.Error(lines)
	}
	if err := from.CopyTo(to, "/none", "/"); err == nil {
		t.Error("nothing was copied without an error")
	}
}
