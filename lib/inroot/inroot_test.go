package inroot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Count(m)) }

func TestNoLinkLeavesTheTree(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	for link, target := range map[string]string{
		"absolute": outside + "/secret", "climbing": "../../../../../../../.." + outside + "/secret", "folder": outside,
	} {
		if err := os.Symlink(target, filepath.Join(tree, link)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"absolute", "climbing", "folder/secret", "../" + outside + "/secret", outside + "/secret"} {
		if b, err := r.ReadFile(name, 100); err == nil {
			t.Errorf("%s read %q", name, b)
		}
	}
}

func TestADeviceIsNotOpened(t *testing.T) {
	tree := t.TempDir()
	// A number that no driver has: to open it fails in another way than to look at it.
	err := unix.Mknod(filepath.Join(tree, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(511, 1)))
	if errors.Is(err, unix.EPERM) {
		kit.Skip(t, "device nodes need root")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(tree, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("device", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	r, err := Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"device", "link", "pipe", "."} {
		if _, err := r.ReadFile(name, 10); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.OpenRegular("link", unix.O_NOFOLLOW); !errors.Is(err, ErrNotRegular) {
		t.Errorf("the link itself: %v", err)
	}
}

func TestReadFileIsBounded(t *testing.T) {
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "f"), make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.ReadFile("f", 10); err == nil {
		t.Error("a longer file was read")
	}
	if _, err := r.ReadFile(".", 10); err == nil {
		t.Error("a folder was read")
	}
	if b, err := r.ReadFile("f", 11); err != nil || len(b) != 11 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := r.MkdirAll("a/b/c", 0o755); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(tree, "a/b/c")); err != nil || !info.IsDir() {
		t.Error(err)
	}
}
