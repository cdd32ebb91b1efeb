package files

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

func engine(t testing.TB) *Files {
	t.Helper()
	f, err := New(filepath.Join(t.TempDir(), "files"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// archive packs headers; a regular file's content is its own name.
func archive(t testing.TB, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// tree lists what lies below a folder: mode, path and content or link.
func tree(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		info, err := e.Info()
		if err != nil {
			return err
		}
		line := info.Mode().String() + " " + rel
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			line += " -> " + to
		case info.Mode().IsRegular():
			b, _ := os.ReadFile(p)
			line += " " + string(b)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func put(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(root, name)
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		default:
			if err = os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				break
			}
			if to, ok := strings.CutPrefix(content, "-> "); ok {
				err = os.Symlink(to, p)
			} else {
				err = os.WriteFile(p, []byte(content), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestStatTellsWhereLinksLeadInsideTheRoot(t *testing.T) {
	f, root := engine(t), t.TempDir()
	put(t, root, map[string]string{
		"etc/real": "x", "one": "-> two", "two": "-> /etc/real", "up": "-> ../../../../etc", "dangling": "-> nowhere/at/all", "loop": "-> loop", "etc/back": "-> ../up/real",
	})
	for name, want := range map[string]string{
		"/one": "/etc/real", "two": "/etc/real", "/up": "/etc", "/dangling": "/nowhere/at/all", "/loop": "", "/etc/back": "/etc/real", "/up/back": "/etc/real", "/etc/real": "",
	} {
		st, err := f.Stat(root, name)
		if err != nil || st.LinkTarget != want {
			t.Errorf("%s leads to %q, want %q (%v)", name, st.LinkTarget, want, err)
		}
	}
	for _, name := range []string{"/nope", "/etc/real/x", "/dangling/x"} {
		if _, err := f.Stat(root, name); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.Stat(root, "/etc/real/"); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("a file with a slash: %v", err)
	}
	if st, err := f.Stat(root, "/"); err != nil || st.Name != "/" || !st.Mode.IsDir() {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestTarNamesBeginWithThePathsLastElement(t *testing.T) {
	f, root := engine(t), t.TempDir()
	put(t, root, map[string]string{"a/dir/file": "x", "a/dir/link": "-> file", "a/dir/empty/": "", "via": "-> a/dir"})
	if err := os.Link(filepath.Join(root, "a/dir/file"), filepath.Join(root, "a/dir/zwin")); err != nil {
		t.Fatal(err)
	}
	all := []string{"dir/", "dir/empty/", "dir/file", "dir/link", "dir/zwin"}
	for path, want := range map[string][]string{
		"/a/dir": all, "/a/dir/": all, "a/dir/.": {"./", "./empty/", "./file", "./link", "./zwin"},
		"/": {"/", "/a/", "/a/dir/", "/a/dir/empty/", "/a/dir/file", "/a/dir/link", "/a/dir/zwin", "/via"},
		"":  {"a/", "a/dir/", "a/dir/empty/", "a/dir/file", "a/dir/link", "a/dir/zwin", "via"}, "/via": {"via"}, "/via/file": {"file"}, "/../../a/dir": all,
	} {
		var b bytes.Buffer
		if _, err := f.Tar(context.Background(), root, path, &b); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		var names []string
		links := 0
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeLink {
				links++
			}
			names = append(names, h.Name)
		}
		slices.Sort(names)
		if d := cmp.Diff(want, names); d != "" {
			t.Errorf("%s: %s", path, d)
		}
		if want, got := len(names) > 2, links == 1; want != got {
			t.Errorf("%s has %d hard links", path, links)
		}
	}
}

func TestACopyIsTheSameTree(t *testing.T) {
	needRoot(t)
	f, root, to := engine(t), t.TempDir(), t.TempDir()
	put(t, root, map[string]string{"d/file": "content", "d/sub/deep/x": "y", "d/link": "-> /etc/passwd", "d/sub/empty/": ""})
	suid := filepath.Join(root, "d/suid")
	put(t, root, map[string]string{"d/suid": "s"})
	if err := errors.Join(os.Chown(suid, 12, 34), os.Chmod(suid, 0o755|fs.ModeSetuid), os.Chmod(filepath.Join(root, "d/sub"), 0o700|fs.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	// VFS_CAP_REVISION_2 with cap_net_raw permitted (linux/capability.h).
	caps := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(filepath.Join(root, "d/file"), capability, caps, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(root, "d/fifo"), 0o620); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, p := range []string{"d/file", "d/sub"} {
		if err := os.Chtimes(filepath.Join(root, p), old, old); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := f.Tar(context.Background(), root, "/d", &b); err != nil {
		t.Fatal(err)
	}
	if err := f.Untar(context.Background(), to, "/", &b, container.UntarOptions{KeepKinds: true}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(tree(t, root), tree(t, to)); d != "" {
		t.Error(d)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(to, "d/suid"), &st); err != nil || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("%d:%d %v", st.Uid, st.Gid, err)
	}
	got := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(to, "d/file"), capability, got); err != nil || !bytes.Equal(got[:n], caps) {
		t.Errorf("capabilities %v, %v", got[:max(n, 0)], err)
	}
	for _, p := range []string{"d/file", "d/sub"} {
		if info, err := os.Stat(filepath.Join(to, p)); err != nil || !info.ModTime().Equal(old) {
			t.Errorf("%s: %v %v", p, info.ModTime(), err)
		}
	}
}

func TestUntarPlacesEntries(t *testing.T) {
	needRoot(t)
	dir := tar.Header{Name: "x/", Typeflag: tar.TypeDir, Mode: 0o755}
	for name, c := range map[string]struct {
		before  map[string]string
		o       container.UntarOptions
		entries []tar.Header
		want    []string
		fails   string
	}{
		"parents are made":             {entries: []tar.Header{{Name: "a/b/c"}}, want: []string{"drwxr-xr-x a", "drwxr-xr-x a/b", "-rw-r--r-- a/b/c a/b/c"}},
		"names stay below":             {entries: []tar.Header{{Name: "../../up"}, {Name: "/abs"}}, want: []string{"-rw-r--r-- abs /abs", "-rw-r--r-- up ../../up"}},
		"a file replaces a file":       {before: map[string]string{"x": "old"}, entries: []tar.Header{{Name: "x"}}, want: []string{"-rw-r--r-- x x"}},
		"a file replaces a link":       {before: map[string]string{"x": "-> y", "y": "kept"}, entries: []tar.Header{{Name: "x"}}, want: []string{"-rw-r--r-- x x", "-rw-r--r-- y kept"}},
		"a folder joins a folder":      {before: map[string]string{"x/in": "kept"}, entries: []tar.Header{dir}, want: []string{"drwxr-xr-x x", "-rw-r--r-- x/in kept"}},
		"a folder replaces a file":     {before: map[string]string{"x": "old"}, entries: []tar.Header{dir}, want: []string{"drwxr-xr-x x"}},
		"a file replaces a full tree":  {before: map[string]string{"x/in/deep": "old"}, entries: []tar.Header{{Name: "x"}}, want: []string{"-rw-r--r-- x x"}},
		"a folder over a file refused": {before: map[string]string{"x": "old"}, o: container.UntarOptions{KeepKinds: true}, entries: []tar.Header{dir}, want: []string{"-rw-r--r-- x old"}, fails: `cannot overwrite non-directory "/x" with directory "/"`},
		"a file over a folder refused": {before: map[string]string{"x/": ""}, o: container.UntarOptions{KeepKinds: true}, entries: []tar.Header{{Name: "x"}}, want: []string{"drwxr-xr-x x"}, fails: `cannot overwrite directory "/x" with non-directory "/"`},
		"links inside are followed":    {before: map[string]string{"real/": "", "x": "-> /real"}, entries: []tar.Header{{Name: "x/f"}}, want: []string{"drwxr-xr-x real", "-rw-r--r-- real/f x/f", "Lrwxrwxrwx x -> /real"}},
		"unknown kinds are refused":    {entries: []tar.Header{{Name: "x", Typeflag: 'Z'}}, fails: "unsupported type"},
		"owners are bounded":           {entries: []tar.Header{{Name: "x", Uid: 1<<32 - 1, Format: tar.FormatPAX}}, fails: "out of range", want: []string{"-rw------- x x"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, root := engine(t), t.TempDir()
			put(t, root, c.before)
			err := f.Untar(context.Background(), root, "/", archive(t, c.entries...), c.o)
			if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
			if d := cmp.Diff(c.want, tree(t, root)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAnArchiveWithHolesIsRefused(t *testing.T) {
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(from, "f"), 1<<30); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		bomb, err := exec.Command("tar", "--sparse", "--format="+format, "-C", from, "-c", "f").Output()
		if err != nil || len(bomb) > 1<<20 {
			t.Fatal(len(bomb), err)
		}
		f, root := engine(t), t.TempDir()
		err = f.Untar(context.Background(), root, "/", bytes.NewReader(bomb), container.UntarOptions{})
		if err == nil || !strings.Contains(err.Error(), "stored with holes") {
			t.Errorf("%s: %v", format, err)
		}
		if left := tree(t, root); left != nil {
			t.Errorf("%s left %v", format, left)
		}
	}
}

func TestFoldersKeepTheirTimesHoweverManyThereAre(t *testing.T) {
	needRoot(t)
	at := time.Unix(1_500_000_000, 0)
	dir := func(name string) tar.Header {
		return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at}
	}
	deep := "top"
	list := []tar.Header{dir(deep)}
	for range 14 {
		deep += "/" + strings.Repeat("d", 250)
		list = append(list, dir(deep))
	}
	for i := range 2 * maxHeld / len(deep) {
		list = append(list, dir(fmt.Sprint(deep, "/", i)))
	}
	list = append(list, dir("top/last"), dir("top"))
	root := t.TempDir()
	if err := engine(t).Untar(t.Context(), root, "/", archive(t, list...), container.UntarOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, h := range list {
		st, err := os.Lstat(filepath.Join(root, h.Name))
		if err != nil {
			t.Fatal(err)
		}
		if !st.ModTime().Equal(at) {
			t.Fatalf("%.20s… has the time %v", h.Name, st.ModTime())
		}
	}
}

func TestWhatIsWrongWithAnArchiveIsTheArchivesFault(t *testing.T) {
	needRoot(t)
	for name, in := range map[string]*bytes.Buffer{
		"a link to what is not there":   archive(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}),
		"a link to itself":              archive(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "l"}),
		"a name too long":               archive(t, tar.Header{Name: strings.Repeat("n", 300)}),
		"links in a circle":             archive(t, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "a"}, tar.Header{Name: "a/b"}),
		"a link to nothing":             archive(t, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: ""}),
		"an end in the midst of a file": bytes.NewBuffer(archive(t, tar.Header{Name: "abc"}).Bytes()[:514]),
	} {
		err := engine(t).Untar(t.Context(), t.TempDir(), "/", in, container.UntarOptions{})
		if !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUntarReadsCompressedArchives(t *testing.T) {
	f, root := engine(t), t.TempDir()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.Copy(z, archive(t, tar.Header{Name: "f", Uid: os.Getuid(), Gid: os.Getgid()})); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Untar(context.Background(), root, "/", &b, container.UntarOptions{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"-rw-r--r-- f f"}, tree(t, root)); d != "" {
		t.Error(d)
	}
}

func TestUntarGivesAllToOneOwner(t *testing.T) {
	needRoot(t)
	f, root := engine(t), t.TempDir()
	err := f.Untar(context.Background(), root, "/", archive(t, tar.Header{Name: "f", Uid: 5, Gid: 6}), container.UntarOptions{Owner: &container.Owner{UID: 77, GID: 78}})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "f"), &st); err != nil || st.Uid != 77 || st.Gid != 78 {
		t.Errorf("%d:%d %v", st.Uid, st.Gid, err)
	}
}

func TestUntarNeedsAFolder(t *testing.T) {
	f, root := engine(t), t.TempDir()
	put(t, root, map[string]string{"file": "x"})
	if err := f.Untar(context.Background(), root, "/file", archive(t), container.UntarOptions{}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("into a file: %v", err)
	}
	if err := f.Untar(context.Background(), root, "/nope", archive(t), container.UntarOptions{}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("into nothing: %v", err)
	}
}

func TestCopyUpFillsAnEmptyFolder(t *testing.T) {
	needRoot(t)
	f, root, dst := engine(t), t.TempDir(), filepath.Join(t.TempDir(), "v")
	put(t, root, map[string]string{"data/x": "y", "via": "-> data"})
	if err := errors.Join(os.Chown(filepath.Join(root, "data"), 9, 8), os.Chmod(filepath.Join(root, "data"), 0o2750|fs.ModeSetgid), os.Mkdir(dst, 0o755)); err != nil {
		t.Fatal(err)
	}
	asked := 0
	into := func() (string, error) { asked++; return dst, nil }
	if err := f.CopyUp(context.Background(), root, "/via", into); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"-rw-r--r-- x y"}, tree(t, dst)); d != "" {
		t.Error(d)
	}
	var st unix.Stat_t
	if err := unix.Stat(dst, &st); err != nil || st.Uid != 9 || st.Gid != 8 || st.Mode&0o7777 != 0o2750 {
		t.Errorf("%d:%d %o %v", st.Uid, st.Gid, st.Mode, err)
	}
	if err := f.CopyUp(context.Background(), root, "/nope", into); err != nil || asked != 1 {
		t.Errorf("from nothing: %v, asked %d times", err, asked)
	}
}

func TestAViewShowsMountsAndLeavesNothing(t *testing.T) {
	needRoot(t)
	f, root, volume := engine(t), t.TempDir(), t.TempDir()
	put(t, root, map[string]string{"etc/": "", "evil": "-> /etc"})
	put(t, volume, map[string]string{"note": "kept", "sub/inner": "in", "escape": "-> /../../../etc"})
	bind := func(target, sub string, o ...string) container.BundleMount {
		return container.BundleMount{Source: volume, Target: target, Type: "bind", Options: append([]string{"rbind"}, o...), Subpath: sub}
	}
	view, closeView, err := f.View(root, true, []container.BundleMount{bind("/vol/sub2", "sub"), bind("/vol", ""), bind("/evil/ro", "", "ro")})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"vol/note": "kept", "vol/sub2/inner": "in", "etc/ro/note": "kept"} {
		if b, err := f.ReadFile(view, name, 100); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	one := tar.Header{Name: "new"}
	if err := f.Untar(context.Background(), view, "/vol", archive(t, one), container.UntarOptions{}); err != nil {
		t.Errorf("into the volume: %v", err)
	}
	for _, p := range []string{"/etc/ro", "/etc"} {
		if err := f.Untar(context.Background(), view, p, archive(t, one), container.UntarOptions{}); !errors.Is(err, fault.ErrPermission) {
			t.Errorf("into %s: %v", p, err)
		}
	}
	if err := closeView(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(view); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", view, err)
	}
	if b, err := os.ReadFile(filepath.Join(volume, "new")); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	if _, _, err := f.View(root, false, []container.BundleMount{bind("/x", "escape")}); err == nil {
		t.Error("a subpath left its volume")
	}
	if left, err := os.ReadDir(f.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
