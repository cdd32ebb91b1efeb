package inroot

import (
	"os"
	"path/filepath"
	"testing"
)

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
