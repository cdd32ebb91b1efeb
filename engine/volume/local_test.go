package volume

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

func newLocal(t *testing.T) *Local {
	t.Helper()
	l, err := NewLocal(filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// made is a volume with a file in it.
func made(t *testing.T, l *Local, name string, options map[string]string) volume.Volume {
	t.Helper()
	v := volume.Volume{Name: name, Options: options}
	v.Mountpoint = l.Mountpoint(v)
	if err := l.Create(v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "file"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	return v
}

// apart runs a test in a mount namespace of its own.
func apart(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestOptionsAreChecked(t *testing.T) {
	for _, tt := range []struct {
		options map[string]string
		want    string
	}{
		{nil, ""},
		{map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}, ""},
		{map[string]string{"type": "none", "device": "/x", "o": "bind"}, ""},
		{map[string]string{"color": "red"}, `invalid option: "color"`},
		{map[string]string{"type": "tmpfs"}, `missing required option: "device"`},
		{map[string]string{"device": "/x"}, `missing required option: "type"`},
		{map[string]string{"o": "bind", "device": "/x"}, `missing required option: "type"`},
		{map[string]string{"size": "1m"}, "quota size requested but no quota support"},
	} {
		err := newLocal(t).Check(tt.options)
		got := ""
		if err != nil {
			got = err.Error()
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("class of %v", err)
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Error(tt.options, d)
		}
	}
}

func TestARemovedVolumeIsFoundUntilItIsPurged(t *testing.T) {
	l := newLocal(t)
	v := made(t, l, "one", nil)
	made(t, l, "two", nil)
	if size, err := l.Size(t.Context(), v); size != 1000 || err != nil {
		t.Errorf("%d bytes: %v", size, err)
	}
	if err := l.Remove(v); err != nil {
		t.Fatal(err)
	}
	found, removed, err := l.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != "two" || len(removed) != 1 || removed[0].Name != "one" {
		t.Errorf("%v and %v", found, removed)
	}
	if err := l.Purge(v); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(v); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, removed, _ = l.Find(t.Context()); len(removed) != 0 {
		t.Errorf("%v", removed)
	}
}

func TestOptionsMount(t *testing.T) {
	apart(t, func() {
		l := newLocal(t)
		device := t.TempDir()
		if err := os.WriteFile(filepath.Join(device, "theirs"), nil, 0o600); err != nil {
			t.Error(err)
			return
		}
		for name, options := range map[string]map[string]string{
			"bind":     {"type": "none", "o": "bind", "device": device},
			"readonly": {"type": "none", "o": "rbind,ro,nosuid", "device": device},
			"tmpfs":    {"type": "tmpfs", "o": "size=1m,uid=7,nodev", "device": "tmpfs"},
		} {
			v := made(t, l, name, options)
			for range 2 { // again is no error
				if err := l.Mount(v); err != nil {
					t.Error(name, err)
				}
			}
			_, err := os.Stat(filepath.Join(v.Mountpoint, "theirs"))
			if seen := err == nil; seen != (name != "tmpfs") {
				t.Errorf("%s: %v", name, err)
			}
			err = os.WriteFile(filepath.Join(v.Mountpoint, "new-"+name), nil, 0o600)
			if readonly := errors.Is(err, unix.EROFS); readonly != (name == "readonly") {
				t.Errorf("%s: %v", name, err)
			}
			mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(v.Mountpoint))
			if err != nil || len(mounts) != 1 {
				t.Errorf("%s: %d mounts, %v", name, len(mounts), err)
				continue
			}
			if name == "tmpfs" && (!strings.Contains(mounts[0].VFSOptions, "size=1024k") || !strings.Contains(mounts[0].Options, "nodev")) {
				t.Errorf("%s has %s, %s", name, mounts[0].Options, mounts[0].VFSOptions)
			}
			if err := l.Remove(v); err != nil {
				t.Error(name, err)
			}
			if err := l.Purge(v); err != nil {
				t.Error(name, err)
			}
		}
		if _, err := os.Stat(filepath.Join(device, "theirs")); err != nil {
			t.Errorf("a removed volume took its device's files with it: %v", err)
		}
	})
}

func TestWhatCannotBeMountedIsSaidClearly(t *testing.T) {
	apart(t, func() {
		l := newLocal(t)
		for name, tt := range map[string]struct {
			options map[string]string
			want    string
		}{
			"device": {map[string]string{"type": "none", "o": "bind", "device": "/nowhere"}, ", flags: 0x1000: no such file or directory"},
			"kernel": {map[string]string{"type": "no-such-fs", "o": "password=x,a=b", "device": "d"}, ", flags: 0x0, data: password=********,a=b: no such device (this host's kernel has no file system \"no-such-fs\")"},
		} {
			v := made(t, l, name, tt.options)
			want := "error while mounting volume '" + v.Mountpoint + "': failed to mount local volume: mount " + tt.options["device"] + ":" + v.Mountpoint + tt.want
			err := l.Mount(v)
			if err == nil {
				t.Errorf("%s is mounted", name)
				continue
			}
			if d := cmp.Diff(want, err.Error()); d != "" {
				t.Error(d)
			}
		}
	})
}

func TestAVolumeWithAForeignMountStays(t *testing.T) {
	apart(t, func() {
		l := newLocal(t)
		v := made(t, l, "v", nil)
		inside := filepath.Join(v.Mountpoint, "inside")
		if err := os.Mkdir(inside, 0o700); err != nil {
			t.Error(err)
		}
		if err := unix.Mount("x", inside, "tmpfs", 0, ""); err != nil {
			t.Error(err)
		}
		if err := l.Remove(v); !errors.Is(err, fault.ErrConflict) {
			t.Errorf("%v", err)
		}
		if err := unix.Unmount(inside, 0); err != nil {
			t.Error(err)
		}
		if err := l.Remove(v); err != nil {
			t.Error(err)
		}
	})
}

// fillWith writes files into whatever folder it is given.
func fillWith(names ...string) func(into func() (string, error)) error {
	return func(into func() (string, error)) error {
		dir, err := into()
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := os.WriteFile(filepath.Join(dir, n), []byte("image"), 0o600); err != nil {
				return err
			}
		}
		return os.Chmod(dir, 0o2750|os.ModeSetgid)
	}
}

// content lists what is in a volume's folder, with its mode, and what is beside it.
func content(t *testing.T, l *Local, v volume.Volume) (inside, beside []string) {
	t.Helper()
	list := func(dir string) (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	return list(v.Mountpoint), list(filepath.Join(l.dir, v.Name))
}

func TestFillGivesAllOrNothing(t *testing.T) {
	l := newLocal(t)
	fresh := func(name string) volume.Volume {
		v := volume.Volume{Name: name}
		v.Mountpoint = l.Mountpoint(v)
		if err := l.Create(v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	broken := errors.New("broken")
	partly := func(into func() (string, error)) error {
		return errors.Join(fillWith("a")(into), broken)
	}
	// killed is what a daemon leaves that dies while it writes.
	killed := func(v volume.Volume) {
		defer func() { _ = recover() }()
		_ = l.Fill(v, func(into func() (string, error)) error { _ = fillWith("a")(into); panic("killed") })
	}
	for _, c := range []struct {
		name   string
		before func(v volume.Volume)
		fill   func(into func() (string, error)) error
		want   []string
		err    error
	}{
		{"an empty one is filled", func(volume.Volume) {}, fillWith("a", "b"), []string{"a", "b"}, nil},
		{"one that holds something stays", func(v volume.Volume) { _ = os.WriteFile(filepath.Join(v.Mountpoint, "mine"), nil, 0o600) }, fillWith("a"), []string{"mine"}, nil},
		{"nothing asked for leaves it empty", func(volume.Volume) {}, func(func() (string, error)) error { return nil }, nil, nil},
		{"a failure leaves it empty", func(volume.Volume) {}, partly, nil, broken},
		{"a kill while it is written is as if it never was", killed, fillWith("a", "b"), []string{"a", "b"}, nil},
		{"a kill while it moves up is gone on with", func(v volume.Volume) {
			killed(v)
			stage, _ := filepath.Glob(filepath.Join(v.Mountpoint, stagePrefix+"*"))
			if err := errors.Join(
				os.Rename(l.record(v, filling), l.record(v, filled)),
				os.WriteFile(filepath.Join(v.Mountpoint, "moved"), nil, 0o600),
				os.WriteFile(filepath.Join(stage[0], "moved"), []byte("another's"), 0o600),
			); err != nil {
				t.Fatal(err)
			}
		}, fillWith("never"), []string{"a", "moved"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := fresh(strings.ReplaceAll(c.name, " ", "-"))
			c.before(v)
			if err := l.Fill(v, c.fill); !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			inside, beside := content(t, l, v)
			if d := cmp.Diff(c.want, inside); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff([]string{dataFolder}, beside); d != "" {
				t.Error(d)
			}
			info, err := os.Stat(v.Mountpoint)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); (got == 0o750) != (len(c.want) > 1) {
				t.Errorf("mode %o", got)
			}
		})
	}
	t.Run("whoever mounts it next sees nothing of a kill", func(t *testing.T) {
		v := fresh("mounted")
		killed(v)
		if err := l.Mount(v); err != nil {
			t.Fatal(err)
		}
		if inside, _ := content(t, l, v); len(inside) > 0 {
			t.Errorf("%v", inside)
		}
	})
}

func TestFillOfAMountedVolume(t *testing.T) {
	l := newLocal(t)
	apart(t, func() {
		v := volume.Volume{Name: "tmp", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}}
		v.Mountpoint = l.Mountpoint(v)
		if err := l.Create(v); err != nil {
			t.Error(err)
			return
		}
		if err := errors.Join(l.Mount(v), l.Fill(v, fillWith("a"))); err != nil {
			t.Error(err)
			return
		}
		if inside, beside := content(t, l, v); !cmp.Equal(inside, []string{"a"}) || len(beside) != 1 {
			t.Errorf("%v, beside %v", inside, beside)
		}
		if err := l.Unmount(v); err != nil {
			t.Error(err)
		}
	})
}
