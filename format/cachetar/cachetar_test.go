package cachetar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var large = Limits{Bytes: 1 << 20, Entries: 1000}

// pack writes a tar of headers; a file's content are as many x as its size.
func pack(t testing.TB, index string, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write := func(h tar.Header, body string) {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if index != "" {
		write(tar.Header{Name: "berth-cache.json", Mode: 0o644, Size: int64(len(index))}, index)
	}
	for _, h := range headers {
		write(h, strings.Repeat("x", int(h.Size)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// drain reads all and gives the paths.
func drain(b []byte, l Limits) (list []string, err error) {
	r, err := NewReader(bytes.NewReader(b), l)
	if err != nil {
		return nil, err
	}
	for {
		n, h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return list, err
		}
		list = append(list, below(n, h.Name))
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	mounts := []Mount{{Key: "/npm", Target: "/root/.npm"}, {Key: "//root/.cache", Target: "/root/.cache", HasBase: true}}
	var b bytes.Buffer
	w, err := NewWriter(&b, mounts)
	if err != nil {
		t.Fatal(err)
	}
	for n, list := range [][]tar.Header{
		{{Name: ".", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "a", Typeflag: tar.TypeReg, Mode: 0o600, Size: 2}, {Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}},
		{{Name: ".", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: strings.Repeat("d", 200), Typeflag: tar.TypeSymlink, Linkname: "/elsewhere"}},
	} {
		for _, h := range list {
			if err := w.Entry(n, h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				if _, err := w.Write([]byte("hi")); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(b.Bytes()), large)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(mounts, r.Mounts()); d != "" {
		t.Error(d)
	}
	got, err := drain(b.Bytes(), large)
	want := []string{"0", "0/a", "0/b", "1", "1/" + strings.Repeat("d", 200)}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestABareArchiveIsOneMount(t *testing.T) {
	b := pack(t, "", tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "./x/y", Size: 3, Mode: 0o644})
	got, err := drain(b, large)
	if d := cmp.Diff([]string{"0", "0/x/y"}, got); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	const one = `{"version":1,"mounts":[{"key":"/m"}]}`
	const two = `{"version":1,"mounts":[{"key":"/m"},{"key":"/n"}]}`
	for name, c := range map[string]struct {
		index string
		entry tar.Header
		want  string
	}{
		"climbs":            {one, tar.Header{Name: "0/../../etc/passwd"}, "leaves its cache mount"},
		"climbs bare":       {"", tar.Header{Name: "../x"}, "leaves its cache mount"},
		"absolute":          {"", tar.Header{Name: "/etc/passwd"}, "absolute"},
		"of no mount":       {one, tar.Header{Name: "7/x"}, "none of the cache mounts"},
		"of no number":      {one, tar.Header{Name: "00/x"}, "none of the cache mounts"},
		"device":            {one, tar.Header{Name: "0/x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, "devices"},
		"block device":      {one, tar.Header{Name: "0/x", Typeflag: tar.TypeBlock}, "devices"},
		"pipe":              {one, tar.Header{Name: "0/x", Typeflag: tar.TypeFifo}, "pipes"},
		"link out":          {one, tar.Header{Name: "0/x", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"}, "hard link"},
		"link absolute":     {one, tar.Header{Name: "0/x", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}, "hard link"},
		"link to another":   {two, tar.Header{Name: "1/x", Typeflag: tar.TypeLink, Linkname: "0/x"}, "hard link"},
		"root is a link":    {one, tar.Header{Name: "0", Typeflag: tar.TypeSymlink, Linkname: "/"}, "is a folder"},
		"too many bytes":    {one, tar.Header{Name: "0/x", Size: 2 << 20}, "too many bytes"},
		"version":           {`{"version":9,"mounts":[{"key":"/m"}]}`, tar.Header{Name: "0/x"}, "version 9"},
		"no mounts":         {`{"version":1}`, tar.Header{Name: "0/x"}, "no cache mount"},
		"twice":             {`{"version":1,"mounts":[{"key":"/m"},{"key":"/m"}]}`, tar.Header{Name: "0/x"}, "twice"},
		"no key":            {`{"version":1,"mounts":[{"target":"/m"}]}`, tar.Header{Name: "0/x"}, "no id"},
		"control in key":    {`{"version":1,"mounts":[{"key":"/a\u001b[31m"}]}`, tar.Header{Name: "0/x"}, "control characters"},
		"key too long":      {`{"version":1,"mounts":[{"key":"/` + strings.Repeat("k", 2000) + `"}]}`, tar.Header{Name: "0/x"}, "too long"},
		"index is no JSON":  {`nonsense`, tar.Header{Name: "0/x"}, "berth-cache.json"},
		"index is too long": {`{"version":1,"x":"` + strings.Repeat("k", 1<<20) + `"}`, tar.Header{Name: "0/x"}, "exceeds"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := drain(pack(t, c.index, c.entry), large)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	many := pack(t, one, tar.Header{Name: "0/a"}, tar.Header{Name: "0/b"}, tar.Header{Name: "0/c"})
	if _, err := drain(many, Limits{Bytes: 10, Entries: 2}); err == nil || !strings.Contains(err.Error(), "too many files") {
		t.Errorf("got %v", err)
	}
	back := pack(t, two, tar.Header{Name: "1/a"}, tar.Header{Name: "0/b"})
	if _, err := drain(back, large); err == nil || !strings.Contains(err.Error(), "order") {
		t.Errorf("got %v", err)
	}
	if _, err := drain(nil, large); err == nil {
		t.Error("an empty archive is read")
	}
}

func FuzzReader(f *testing.F) {
	f.Add(pack(f, `{"version":1,"mounts":[{"key":"/m"}]}`, tar.Header{Name: "0/", Typeflag: tar.TypeDir}, tar.Header{Name: "0/x", Size: 3}, tar.Header{Name: "0/y", Typeflag: tar.TypeLink, Linkname: "0/x"}))
	f.Add(pack(f, "", tar.Header{Name: "./a/b", Size: 5}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b), large)
		if err != nil {
			return
		}
		read := int64(0)
		for {
			n, h, err := r.Next()
			if err != nil {
				return
			}
			if n < 0 || r.Mounts() != nil && n >= len(r.Mounts()) {
				t.Fatalf("mount %d of %d", n, len(r.Mounts()))
			}
			for _, p := range []string{h.Name, map[bool]string{true: h.Linkname, false: "x"}[h.Typeflag == tar.TypeLink]} {
				if p == "" || path.IsAbs(p) || p != path.Clean(p) || p == ".." || strings.HasPrefix(p, "../") {
					t.Fatalf("path %q is let through", p)
				}
			}
			m, err := io.Copy(io.Discard, r)
			if read += m; read > large.Bytes {
				t.Fatalf("%d bytes are let through", read)
			}
			if err != nil {
				return
			}
		}
	})
}
