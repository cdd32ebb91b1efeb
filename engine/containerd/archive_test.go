package containerd_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/engine/containerd"
	"github.com/berth-project/berth/lib/fault"
)

// census lists the content and snapshots that containerd holds.
func census(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, sub := range []string{"io.containerd.content.v1.content/blobs/sha256", "io.containerd.content.v1.content/ingest", "io.containerd.snapshotter.v1.overlayfs/snapshots"} {
		entries, err := os.ReadDir(filepath.Join(world.dir, "root", sub))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, filepath.Base(sub)+"/"+e.Name())
		}
	}
	return list
}

// unchanged waits until nothing is left of what a test did.
func unchanged(t *testing.T, l *containerd.Library, before []string) {
	t.Helper()
	until(t, func() error {
		if _, _, err := l.Prune(t.Context(), nil); err != nil {
			return err
		}
		if diff := cmp.Diff(before, census(t)); diff != "" {
			return fmt.Errorf("left behind:\n%s", diff)
		}
		return nil
	})
}

func quiet(image.Progress) {}

// oldHeader says that the 512 bytes behind it begin a file of a terabyte.
func oldHeader(name string) []byte {
	var b bytes.Buffer
	_ = tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Size: 512, Mode: 0o644})
	h := b.Bytes()[:512]
	h[156] = 'S'
	copy(h[257:], "ustar  \x00") // GNU's magic
	clear(h[265:])
	copy(h[386:], "00000000000\x0000000001000\x00") // a piece: where it is, how long
	h[483] = 0x80                                   // the whole size, in base 256
	h[483+6] = 1                                    // 1 << 40
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func TestHostileArchivesAreRefusedAndLeaveNothing(t *testing.T) {
	l := library(t)
	fine := layer(t, entry{name: "f", body: "x"})
	doc := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	files := func(list ...any) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(list); i += 2 {
			body := list[i+1].([]byte)
			if err := w.WriteHeader(&tar.Header{Name: list[i].(string), Size: int64(len(body)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	sum := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	config := doc(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum(fine)}}})
	manifest := doc([]map[string]any{{"Config": "c.json", "RepoTags": []string{"x:1"}, "Layers": []string{"l.tar"}}})
	oci := func(m []byte, mediaType string) []byte {
		index := doc(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"mediaType": mediaType, "digest": sum(m), "size": len(m)}}})
		return files("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json", index, "blobs/sha256/"+sum(m)[7:], m, "blobs/sha256/"+sum(config)[7:], config, "blobs/sha256/"+sum(fine)[7:], fine)
	}
	ociManifest := func(change func(map[string]any)) []byte {
		m := map[string]any{
			"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
			"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sum(config), "size": len(config)},
			"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sum(fine), "size": len(fine)}},
		}
		change(m)
		return doc(m)
	}
	const kind = "application/vnd.oci.image.manifest.v1+json"
	cases := map[string][]byte{
		"no archive at all":         []byte("this is no archive"),
		"an empty archive":          files(),
		"an archive of other files": files("readme", []byte("x")),
		"a cut archive":             archive(t, []string{"x:1"}, nil, fine)[:1500],
		"a wrong diff id":           files("l.tar", layer(t, entry{name: "other", body: "y"}), "c.json", config, "manifest.json", manifest),
		"a missing layer":           files("c.json", config, "manifest.json", manifest),
		"a missing configuration":   files("l.tar", fine, "manifest.json", manifest),
		"a bad reference":           archive(t, []string{"UPPER:1"}, nil, fine),
		"more layers than diff ids": files("l.tar", fine, "c.json", config, "manifest.json", doc([]map[string]any{{"Config": "c.json", "Layers": []string{"l.tar", "l.tar"}}})),
		"a layer that is no archive": func() []byte {
			junk := bytes.Repeat([]byte("junk"), 1000)
			c := doc(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum(junk)}}})
			return files("l.tar", junk, "c.json", c, "manifest.json", manifest)
		}(),
		"a manifest that is an index too":   oci(ociManifest(func(m map[string]any) { m["manifests"] = []any{} }), kind),
		"a manifest of another type":        oci(ociManifest(func(m map[string]any) { m["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json" }), kind),
		"a manifest with a key twice":       oci([]byte(strings.Replace(string(ociManifest(func(map[string]any) {})), `{`, `{"schemaVersion":2,`, 1)), kind),
		"a manifest with a key in capitals": oci(ociManifest(func(m map[string]any) { m["Layers"] = []any{} }), kind),
		"a digest that does not fit": func() []byte {
			m := ociManifest(func(map[string]any) {})
			index := doc(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"mediaType": kind, "digest": sum([]byte("else")), "size": len(m)}}})
			return files("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json", index, "blobs/sha256/"+sum([]byte("else"))[7:], m)
		}(),
	}
	cases["a manifest of 20,000 layers"] = files("l.tar", fine, "c.json", config, "manifest.json", doc([]map[string]any{{"Config": "c.json", "Layers": slices.Repeat([]string{"l.tar"}, 20_000)}}))
	below := layer(t, entry{name: "below"})
	bad := func(h tar.Header, body string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(body))
		_ = w.Flush()
		_, _ = b.Write(make([]byte, 1024))
		return archive(t, []string{"x:1"}, nil, below, b.Bytes())
	}
	// GNU's old form of a file with holes: one byte at the start, then a terabyte of nothing.
	hole := archive(t, []string{"x:1"}, nil, slices.Concat(oldHeader("lastlog"), bytes.Repeat([]byte("x"), 512), make([]byte, 1024)))
	for name, body := range map[string][]byte{
		"a layer with a hole that no disk holds":      hole,
		"a layer with a file larger than the disk":    bad(tar.Header{Name: "f", Size: 1 << 60}, ""),
		"a layer that is cut":                         bad(tar.Header{Name: "f", Size: 100_000}, "x"),
		"a layer that hides what has no name":         bad(tar.Header{Name: ".wh."}, ""),
		"a layer that hides the folder above":         bad(tar.Header{Name: ".wh..."}, ""),
		"a layer with a link to what is not there":    bad(tar.Header{Name: "f", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}, ""),
		"a layer with a link to a folder":             bad(tar.Header{Name: "f", Typeflag: tar.TypeLink, Linkname: "/"}, ""),
		"a layer with a name that no folder can hold": bad(tar.Header{Name: strings.Repeat("a", 300)}, ""),
	} {
		cases[name] = body
	}
	before := census(t)
	for name, body := range cases {
		t.Run(name, func(t *testing.T) {
			err := l.Load(t.Context(), bytes.NewReader(body), true, nil, quiet)
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("it was loaded, or somebody else is blamed: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), world.dir) {
				t.Errorf("the error tells where the engine keeps its files: %v", err)
			}
		})
	}
	unchanged(t, l, before)
}

func TestLayersCannotLeaveTheirRoot(t *testing.T) {
	l := library(t)
	outside := filepath.Join(t.TempDir(), "outside")
	up := strings.Repeat("../", 30)
	for name, entries := range map[string][]entry{
		"a name that climbs":           {{name: up + outside, body: "x"}},
		"an absolute name":             {{name: outside, body: "x"}},
		"a symbolic link out":          {{name: "d", link: filepath.Dir(outside), kind: tar.TypeSymlink}, {name: "d/outside", body: "x"}},
		"a relative symbolic link out": {{name: "d", link: up + filepath.Dir(outside)[1:], kind: tar.TypeSymlink}, {name: "d/outside", body: "x"}},
		"a hard link out":              {{name: "h", link: up + "etc/shadow", kind: tar.TypeLink}},
		"a whiteout that climbs":       {{name: "d/../../../../../.wh.outside"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(outside, []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := l.Load(t.Context(), bytes.NewReader(archive(t, []string{"escape:1"}, nil, layer(t, entries...))), true, nil, quiet)
			t.Log(err)
			if b, err := os.ReadFile(outside); err != nil || string(b) != "kept" {
				t.Errorf("a file outside was changed: %q %v", b, err)
			}
		})
	}
}

func TestArchivesLoadWhateverTheirCompression(t *testing.T) {
	l := library(t)
	plain := archive(t, []string{"packed:1"}, map[string]any{"Cmd": []string{"y"}}, layer(t, entry{name: "file", body: "inside"}))
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zst.Bytes()} {
		t.Run(name, func(t *testing.T) {
			var said words
			if err := l.Load(t.Context(), bytes.NewReader(body), true, nil, said.report); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(words{"Loaded image: packed:1"}, said); diff != "" {
				t.Error(diff)
			}
			i, err := l.Get(t.Context(), "packed:1", "", false)
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, l, i.ID, "file"); got != "inside" {
				t.Errorf("file = %q", got)
			}
			if _, err := l.Remove(t.Context(), "packed:1", false, true, nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOthersReadASavedArchive(t *testing.T) {
	l := library(t)
	id := load(t, l, "saved:1", map[string]any{"Cmd": []string{"y"}}, layer(t, entry{name: "a", body: "one"}), layer(t, entry{name: "b", body: "two"}))
	if err := l.Tag(t.Context(), "saved:1", "saved:2"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "saved.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Save(t.Context(), []string{"saved"}, nil, f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("Berth itself", func(t *testing.T) {
		for _, ref := range []string{"saved:1", "saved:2"} {
			if _, err := l.Remove(t.Context(), ref, true, true, nil); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := l.Load(t.Context(), f, true, nil, quiet); err != nil {
			t.Fatal(err)
		}
		i, err := l.Get(t.Context(), "saved:2", "", false)
		if err != nil || i.ID != id {
			t.Errorf("%s %v, want %s", i.ID, err, id)
		}
	})
	for name, args := range map[string][]string{
		"skopeo from a docker archive": {"copy", "docker-archive:" + file + ":saved:2", "dir:" + filepath.Join(dir, "one")},
	} {
		t.Run(name, func(t *testing.T) {
			program, err := exec.LookPath("skopeo")
			if err != nil {
				t.Skip("skopeo is not installed")
			}
			if out, err := exec.Command(program, append([]string{"--insecure-policy"}, args...)...).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// severalPlatforms is an archive of the image many:1 for arm64 and amd64, and of
// what was stated of the latter where statement is given.
func severalPlatforms(t *testing.T, statement string) io.Reader {
	t.Helper()
	a, b := layer(t, entry{name: "arch", body: "amd64"}), layer(t, entry{name: "arch", body: "arm64"})
	blobs := map[string][]byte{}
	put := func(v any) map[string]any {
		body, raw := v.([]byte)
		if !raw {
			var err error
			if body, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(body))
		blobs["blobs/sha256/"+sum] = body
		return map[string]any{"digest": "sha256:" + sum, "size": len(body)}
	}
	typed := func(d map[string]any, kind string) map[string]any { d["mediaType"] = kind; return d }
	one := func(arch string, l []byte) map[string]any {
		config := typed(put(map[string]any{"os": "linux", "architecture": arch, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(l))}}}), "application/vnd.oci.image.config.v1+json")
		m := put(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{typed(put(l), "application/vnd.oci.image.layer.v1.tar")}})
		m["platform"] = map[string]any{"os": "linux", "architecture": arch}
		return typed(m, "application/vnd.oci.image.manifest.v1+json")
	}
	amd64 := one("amd64", a)
	manifests := []any{one("arm64", b), amd64}
	if statement != "" {
		said := typed(put([]byte(statement)), "application/vnd.in-toto+json")
		said["annotations"] = map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
		config := typed(put(map[string]any{"os": "unknown", "architecture": "unknown", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{said["digest"].(string)}}}), "application/vnd.oci.image.config.v1+json")
		m := typed(put(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{said}}), "application/vnd.oci.image.manifest.v1+json")
		m["platform"] = map[string]any{"os": "unknown", "architecture": "unknown"}
		m["annotations"] = map[string]any{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd64["digest"]}
		manifests = append(manifests, m)
	}
	index := typed(put(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}), "application/vnd.oci.image.index.v1+json")
	index["annotations"] = map[string]string{"io.containerd.image.name": "docker.io/library/many:1"}
	top, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{index}})
	if err != nil {
		t.Fatal(err)
	}
	blobs["index.json"], blobs["oci-layout"] = top, []byte(`{"imageLayoutVersion":"1.0.0"}`)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, body := range blobs {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestAnIndexOfSeveralPlatformsIsKeptWhole(t *testing.T) {
	l := library(t)
	if err := l.Load(t.Context(), severalPlatforms(t, ""), true, nil, quiet); err != nil {
		t.Fatal(err)
	}
	for platform, want := range map[string]string{"": "amd64", "linux/amd64": "amd64", "linux/arm64": "arm64"} {
		info, err := l.Resolve(t.Context(), "many:1", platform)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, l, info.ID, "arch"); got != want {
			t.Errorf("platform %q has %q", platform, got)
		}
	}
	if _, err := l.Resolve(t.Context(), "many:1", "linux/s390x"); err == nil || !strings.Contains(err.Error(), "does not provide the specified platform") {
		t.Error(err)
	}
	i, err := l.Get(t.Context(), "many:1", "", true)
	if err != nil || len(i.Manifests) != 2 {
		t.Errorf("manifests %+v %v", i.Manifests, err)
	}
	address := registry(t, "")
	ref := address + "/many:1"
	if err := l.Tag(t.Context(), "many:1", ref); err != nil {
		t.Fatal(err)
	}
	if err := l.Push(t.Context(), ref, image.PushOptions{}, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Remove(t.Context(), i.ID, true, true, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Pull(t.Context(), ref, image.PullOptions{Platform: "linux/arm64"}, quiet); err != nil {
		t.Fatal(err)
	}
	if j, err := l.Get(t.Context(), ref, "", false); err != nil || j.Arch != "arm64" {
		t.Errorf("pulled for arm64: %s %v", j.Arch, err)
	}
	if err := l.Pull(t.Context(), ref, image.PullOptions{}, quiet); err != nil {
		t.Fatal(err)
	}
	if j, err := l.Get(t.Context(), ref, "", false); err != nil || j.Arch != "amd64" {
		t.Errorf("pulled for this host: %s %v", j.Arch, err)
	}
	err = l.Pull(t.Context(), ref, image.PullOptions{Platform: "linux/s390x"}, quiet)
	if err == nil || err.Error() != "no matching manifest for linux/s390x in the manifest list entries" {
		t.Error(err)
	}
}

func TestImagesAndRootsAreFoundAfterARestart(t *testing.T) {
	l := library(t)
	id := load(t, l, "lasting:1", nil, layer(t, entry{name: "f", body: "kept"}))
	again, err := containerd.NewLibrary(t.Context(), containerd.LibraryOptions{Engine: world.engine})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if i, err := again.Get(t.Context(), "lasting:1", "", false); err != nil || i.ID != id || i.Size == 0 {
		t.Errorf("%+v %v", i, err)
	}
	// What one changes the other sees, as it sees ctr and nerdctl.
	if err := l.Tag(t.Context(), "lasting:1", "lasting:2"); err != nil {
		t.Fatal(err)
	}
	until(t, func() error {
		_, err := again.Get(context.Background(), "lasting:2", "", false)
		return err
	})
	if _, err := l.Remove(t.Context(), "lasting:2", false, true, nil); err != nil {
		t.Fatal(err)
	}
	until(t, func() error {
		if _, err := again.Get(context.Background(), "lasting:2", "", false); err == nil {
			return fmt.Errorf("lasting:2 is still there")
		}
		return nil
	})
	path, err := l.MountImage(t.Context(), "lasting:1", "user")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(b) != "kept" {
		t.Errorf("%q %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(path, "f"), nil, 0o600); err == nil {
		t.Error("an image mount can be written")
	}
	if err := again.UnmountImage(t.Context(), "lasting:1", "user"); err != nil {
		t.Fatal(err)
	}
}

func TestSharedLayersCountOnce(t *testing.T) {
	l := library(t)
	before, err := l.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base := layer(t, entry{name: "big", body: strings.Repeat("x", 1<<20)})
	load(t, l, "one:1", nil, base, layer(t, entry{name: "a", body: strings.Repeat("a", 1<<16)}))
	load(t, l, "two:1", nil, base, layer(t, entry{name: "b", body: strings.Repeat("b", 1<<16)}))
	u, err := l.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	grown := u.LayersSize - before.LayersSize
	if grown < 1<<20+2<<16 || grown > 1<<20+2<<16+64<<10 {
		t.Errorf("layers take %d bytes", grown)
	}
	for _, i := range u.Images {
		if len(i.RepoTags) == 1 && (i.RepoTags[0] == "one:1" || i.RepoTags[0] == "two:1") && (i.SharedSize < 1<<20 || i.SharedSize >= i.Size) {
			t.Errorf("%v shares %d of %d", i.RepoTags, i.SharedSize, i.Size)
		}
	}
}

func TestListFilters(t *testing.T) {
	l := library(t)
	load(t, l, "list/a:1", map[string]any{"Labels": map[string]string{"k": "v"}}, layer(t, entry{name: "a"}))
	load(t, l, "list/b:1", nil, layer(t, entry{name: "b"}))
	load(t, l, "list/b:1", nil, layer(t, entry{name: "c"})) // the other has lost its name
	for name, c := range map[string]struct {
		args filter.Args
		want int
	}{
		"all":                  {nil, 3},
		"dangling":             {filter.Args{"dangling": {"true"}}, 1},
		"not dangling":         {filter.Args{"dangling": {"false"}}, 2},
		"label":                {filter.Args{"label": {"k=v"}}, 1},
		"label of another":     {filter.Args{"label": {"k=w"}}, 0},
		"reference":            {filter.Args{"reference": {"list/*"}}, 2},
		"reference with tag":   {filter.Args{"reference": {"list/b:1"}}, 1},
		"until long ago":       {filter.Args{"until": {"2001-01-01"}}, 0},
		"until a duration":     {filter.Args{"until": {"1h"}}, 3},
		"before none is older": {filter.Args{"before": {"list/a:1"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := l.List(t.Context(), image.ListOptions{Filters: c.args})
			if err != nil || len(list) != c.want {
				t.Errorf("%d images, want %d (%v)", len(list), c.want, err)
			}
		})
	}
	if _, err := l.List(t.Context(), image.ListOptions{Filters: filter.Args{"no": {"x"}}}); err == nil {
		t.Error("an unknown filter passes")
	}
	_, err := l.List(t.Context(), image.ListOptions{Filters: filter.Args{"before": {"none:1"}}})
	if err == nil || err.Error() != "No such image: none:1" {
		t.Error(err)
	}
}

func TestListsAndLookupsOfManyImagesAreFast(t *testing.T) {
	l := library(t)
	const many = 1000
	load(t, l, "many:0", nil, layer(t, entry{name: "a"}))
	for n := range many {
		if err := l.Tag(t.Context(), "many:0", fmt.Sprintf("many:%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	for range 100 {
		if _, err := l.List(t.Context(), image.ListOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("list %s", time.Since(begin)/100)
	begin = time.Now()
	for range 1000 {
		if _, err := l.Resolve(t.Context(), "many:500", ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("resolve %s", time.Since(begin)/1000)
}

func TestOnePlatformOfAnImageIsRemovedAndTheOthersStay(t *testing.T) {
	l := library(t)
	if err := l.Load(t.Context(), severalPlatforms(t, `{"_type":"statement"}`), true, nil, quiet); err != nil {
		t.Fatal(err)
	}
	said, err := l.Attestations(t.Context(), "many:1", "", []string{"https://slsa.dev/provenance/v1"}, true)
	if err != nil || len(said) != 1 || string(said[0].Statement) != `{"_type":"statement"}` {
		t.Errorf("attestations %+v %v", said, err)
	}
	for _, none := range []struct{ platform, kind string }{{"linux/arm64", ""}, {"", "another"}} {
		if said, err := l.Attestations(t.Context(), "many:1", none.platform, strings.Fields(none.kind), false); err != nil || len(said) != 0 {
			t.Errorf("attestations for %v: %+v %v", none, said, err)
		}
	}
	if _, err := l.Remove(t.Context(), "many:1", false, true, []string{"linux/s390x"}); err == nil {
		t.Error("a platform that is not there was removed")
	}
	gone, err := l.Remove(t.Context(), "many:1", false, true, []string{"linux/arm64"})
	if err != nil || len(gone) != 1 || gone[0].Deleted == "" {
		t.Fatal(gone, err)
	}
	if _, err := l.Resolve(t.Context(), "many:1", "linux/arm64"); err == nil {
		t.Error("arm64 is still there")
	}
	info, err := l.Resolve(t.Context(), "many:1", "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, l, info.ID, "arch"); got != "amd64" {
		t.Errorf("of amd64 is left %q", got)
	}
	i, err := l.Get(t.Context(), "many:1", "", true)
	if err != nil {
		t.Fatal(err)
	}
	available := 0
	for _, m := range i.Manifests {
		if m.Available && m.Kind == "image" {
			available++
		}
	}
	if available != 1 {
		t.Errorf("manifests %+v", i.Manifests)
	}
	// With the last platform the image goes.
	if _, err := l.Remove(t.Context(), "many:1", false, true, []string{"linux/amd64"}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Resolve(t.Context(), "many:1", ""); err == nil {
		t.Error("the image is still there")
	}
}
