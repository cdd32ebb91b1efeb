package containerd_test

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/engine/containerd"
)

func TestARootIsChangedCommittedAndForgotten(t *testing.T) {
	l := library(t)
	id := load(t, l, "base:1", map[string]any{"Cmd": []string{"old"}, "Labels": map[string]string{"kept": "yes"}},
		layer(t, entry{name: "dir/", kind: tar.TypeDir, mode: 0o755}, entry{name: "dir/gone", body: "x"}, entry{name: "whole/", kind: tar.TypeDir, mode: 0o755}, entry{name: "whole/old", body: "x"}, entry{name: "same", body: "s"}, entry{name: "changed", body: "before"}))
	dir := t.TempDir()
	roots, err := containerd.NewRootFS(l, dir)
	if err != nil {
		t.Fatal(err)
	}
	c := container.ID(strings.Repeat("c", 64))
	if err := roots.Prepare(t.Context(), c, id, nil); err != nil {
		t.Fatal(err)
	}
	path, err := roots.Mount(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []error{
		os.Remove(filepath.Join(path, "dir/gone")),
		os.RemoveAll(filepath.Join(path, "whole")),
		os.Mkdir(filepath.Join(path, "whole"), 0o755),
		os.WriteFile(filepath.Join(path, "whole/new"), []byte("n"), 0o644),
		os.WriteFile(filepath.Join(path, "changed"), []byte("after"), 0o644),
		os.WriteFile(filepath.Join(path, "added"), []byte("a"), 0o4755),
		os.Chmod(filepath.Join(path, "added"), 0o755|os.ModeSetuid),
		os.Link(filepath.Join(path, "added"), filepath.Join(path, "linked")),
		os.Symlink("added", filepath.Join(path, "symbolic")),
		unix.Setxattr(filepath.Join(path, "added"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
	} {
		if change != nil {
			t.Fatal(change)
		}
	}
	changes, err := roots.Changes(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []container.Change{{Path: "/added", Kind: 1}, {Path: "/changed"}, {Path: "/dir"}, {Path: "/dir/gone", Kind: 2}, {Path: "/linked", Kind: 1}, {Path: "/symbolic", Kind: 1}, {Path: "/whole"}, {Path: "/whole/new", Kind: 1}, {Path: "/whole/old", Kind: 2}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Errorf("changes:\n%s", diff)
	}
	writable, total, err := roots.Usage(t.Context(), c)
	if err != nil || writable == 0 || total < writable {
		t.Errorf("usage %d %d %v", writable, total, err)
	}
	paths, err := roots.Layers(t.Context(), c)
	if err != nil || paths["MergedDir"] != path || paths["UpperDir"] == "" || paths["LowerDir"] == "" || paths["WorkDir"] == "" {
		t.Errorf("layers %v %v", paths, err)
	}

	made, err := l.Commit(t.Context(), image.CommitInput{
		ContainerID: c, ParentID: id, Reference: "made:1", Comment: "note", Author: "me",
		Config: container.ImageConfig{Cmd: []string{"new"}, Labels: map[string]string{"kept": "yes"}}, Changes: []string{"ENV A=b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.Get(t.Context(), made, "", false)
	if err != nil || i.Author != "me" || i.Comment != "note" || i.Config.Labels["kept"] != "yes" || !cmp.Equal(i.Config.Env, []string{"A=b"}) || len(i.Layers) != 2 {
		t.Errorf("%+v %v", i, err)
	}
	copied := container.ID(strings.Repeat("d", 64))
	if err := roots.Prepare(t.Context(), copied, made, nil); err != nil {
		t.Fatal(err)
	}
	again, err := roots.Mount(t.Context(), copied, "")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = filepath.WalkDir(again, func(p string, _ os.DirEntry, err error) error {
		name := strings.TrimPrefix(p, again)
		for _, place := range []string{"/dev", "/etc", "/proc", "/sys", "/.dockerenv"} { // the init layer's
			if strings.HasPrefix(name, place) {
				return err
			}
		}
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"", "/added", "/changed", "/dir", "/linked", "/same", "/symbolic", "/whole", "/whole/new"}, names); diff != "" {
		t.Errorf("files of the new image:\n%s", diff)
	}
	var one, two unix.Stat_t
	if unix.Stat(filepath.Join(again, "added"), &one) != nil || unix.Stat(filepath.Join(again, "linked"), &two) != nil || one.Ino != two.Ino || one.Mode&unix.S_ISUID == 0 {
		t.Error("links or modes are lost")
	}
	if n, err := unix.Getxattr(filepath.Join(again, "added"), "security.capability", nil); err != nil || n != 20 {
		t.Error("capabilities are lost:", err)
	}

	// Another daemon finds the mount, counted once.
	other, err := containerd.NewRootFS(l, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Mount(t.Context(), c, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := os.Stat(filepath.Join(path, "added")); err != nil {
			t.Error("unmounted too soon:", err)
		}
		if err := other.Unmount(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("still mounted:", err)
	}
	for _, id := range []container.ID{c, copied} {
		if err := roots.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	upper := paths["UpperDir"]
	until(t, func() error {
		if _, err := os.Stat(upper); !os.IsNotExist(err) {
			return os.ErrExist
		}
		return nil
	})
}

func TestLinksOfAnImageDoNotLeadTheInitLayerOut(t *testing.T) {
	l := library(t)
	outside := t.TempDir()
	for _, name := range []string{"hosts", "pts"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id := load(t, l, "links:1", nil, layer(t, entry{name: "etc", link: outside, kind: tar.TypeSymlink}, entry{name: "dev", link: outside, kind: tar.TypeSymlink}, entry{name: "sys", link: "/proc/self/root", kind: tar.TypeSymlink}))
	if got := content(t, l, id, "etc/hosts"); got != "" {
		t.Errorf("/etc/hosts = %q", got)
	}
	for _, name := range []string{"hosts", "pts"} {
		if b, err := os.ReadFile(filepath.Join(outside, name)); err != nil || string(b) != "kept" {
			t.Errorf("%s outside was changed: %q %v", name, b, err)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 2 {
		t.Errorf("outside has %v %v", entries, err)
	}
}

func TestUsedImagesGoOnlyByForce(t *testing.T) {
	l := library(t)
	id := load(t, l, "used:1", nil, layer(t, entry{name: "f"}))
	short := id[7:19]
	user := containerd.User{ID: container.ID(strings.Repeat("e", 64))}
	users := []containerd.User{user}
	l.SetUsers(func(i string) []containerd.User {
		if i == id {
			return users
		}
		return nil
	})
	refused := func(ref, want string) {
		t.Helper()
		_, err := l.Remove(t.Context(), ref, false, true, nil)
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	refused("used:1", `conflict: unable to remove repository reference "used:1" (must force) - container eeeeeeeeeeee is using its referenced image `+short)
	refused(id, "conflict: unable to delete "+short+" (must be forced) - image is being used by stopped container eeeeeeeeeeee")
	users[0].Running = true
	refused(id, "conflict: unable to delete "+short+" (cannot be forced) - image is being used by running container eeeeeeeeeeee")
	results, err := l.Remove(t.Context(), "used:1", true, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.RemoveResult{{Untagged: "used:1"}}, results); diff != "" {
		t.Error(diff)
	}
	i, err := l.Get(t.Context(), id, "", false)
	if err != nil || len(i.RepoTags) != 0 {
		t.Errorf("the used image is %v %v", i.RepoTags, err)
	}
	users = nil
	results, err = l.Remove(t.Context(), short, false, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.RemoveResult{{Deleted: id}, {Deleted: i.Layers[0]}}, results); diff != "" {
		t.Error(diff)
	}
	_, err = l.Remove(t.Context(), "used:1", false, true, nil)
	if err == nil || err.Error() != "No such image: used:1" {
		t.Error(err)
	}
}
