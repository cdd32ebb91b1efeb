package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/container"
)

// hostile reads instructions for an archive: one entry a line, kind, name and
// link. It reaches deeper than random bytes, which are rarely an archive.
func hostile(script string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range strings.Split(script, "\n") {
		kind, rest, _ := strings.Cut(line, " ")
		name, link, _ := strings.Cut(rest, " ")
		flag := map[string]byte{"f": tar.TypeReg, "d": tar.TypeDir, "s": tar.TypeSymlink, "h": tar.TypeLink, "p": tar.TypeFifo, "g": tar.TypeXGlobalHeader}[kind]
		if flag == 0 || name == "" {
			continue
		}
		h := tar.Header{Name: name, Linkname: link, Typeflag: flag, Mode: 0o777, Uid: os.Getuid(), Gid: os.Getgid()}
		if flag == tar.TypeReg {
			h.Size = 4
		}
		if w.WriteHeader(&h) == nil && flag == tar.TypeReg {
			_, _ = io.WriteString(w, "evil")
		}
	}
	_ = w.Close()
	return b.Bytes()
}

// FuzzUntarStaysInside extracts hostile archives and looks whether anything
// beside the root has changed.
func FuzzUntarStaysInside(f *testing.F) {
	for _, s := range []string{
		"f ../victim/file", "f /../../victim/file", "s out ../victim\nf out/file", "s out /\nf out/tmp/x", "s a ..\ns b a/../victim\nf b/file",
		"h hard ../victim/file\nf hard", "s l ../victim/file\nh hard l\nf hard/x", "d ..\nd ../victim", "s d ../victim\nd d\nf d/file",
		"s d /proc/self/cwd\nf d/x", "s d /proc/self/root\nf d/tmp/berth-escaped", "p fifo\nf fifo/x", "g x", "f a\nd a\ns a b\nh b a", "f .\nf ./\nf //",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Add("\x1f\x8b\x08\x00", false)
	f.Add(string(hostile("f a")), false)
	top := f.TempDir()
	it := &Files{dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, script string, keep bool) {
		if strings.Contains(script, top) {
			t.Skip("knows the host")
		}
		dir, err := os.MkdirTemp(top, "case-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		root := filepath.Join(dir, "root")
		put(t, dir, map[string]string{"victim/file": "untouched", "root/in/place/x": "y", "root/here": "-> in/place", "root/beside": "-> ../victim"})
		for _, place := range []string{"/", "/here", "/beside"} {
			archive := hostile(script)
			if place == "/" {
				_ = it.Untar(context.Background(), root, place, strings.NewReader(script), container.UntarOptions{KeepKinds: keep})
			}
			_ = it.Untar(context.Background(), root, place, bytes.NewReader(archive), container.UntarOptions{KeepKinds: keep, Owner: &container.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}})
		}
		// What came in can be read without leaving either.
		_, _ = it.Tar(context.Background(), root, "/", io.Discard)
		for _, n := range []string{"here", "in", "out/file"} {
			_, _ = it.Stat(root, n)
		}
		if d := cmp.Diff([]string{"drwxr-xr-x victim", "-rw-r--r-- victim/file untouched"}, outside(t, dir)); d != "" {
			t.Errorf("changed outside: %s", d)
		}
		if _, err := os.Lstat("/tmp/berth-escaped"); !errors.Is(err, fs.ErrNotExist) {
			t.Error("it came out")
		}
	})
}

// outside lists what is beside the root.
func outside(t *testing.T, dir string) []string {
	return slices.DeleteFunc(tree(t, dir), func(line string) bool {
		_, name, _ := strings.Cut(line, " ")
		return name == "root" || strings.HasPrefix(name, "root/")
	})
}
