package kit

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// File is one entry of a test image.
type File struct {
	Path string // inside the image, no leading slash
	Body []byte
	Mode int64  // permission bits; 0 means 0644, or 0755 for a folder
	Link string // target of a symbolic link
	Dir  bool
}

// Config is the part of an image's configuration that tests set.
type Config struct {
	Cmd          []string            `json:",omitempty"`
	Entrypoint   []string            `json:",omitempty"`
	Env          []string            `json:",omitempty"`
	Labels       map[string]string   `json:",omitempty"`
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Volumes      map[string]struct{} `json:",omitempty"`
	WorkingDir   string              `json:",omitempty"`
	User         string              `json:",omitempty"`
}

// SearchPath is the PATH every test image sets.
const SearchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Archive writes a docker archive with one layer.
func Archive(w io.Writer, name string, config Config, files []File) error {
	layer, err := layerOf(files)
	if err != nil {
		return err
	}
	digest := fmt.Sprintf("%x", sha256.Sum256(layer))
	image, err := json.Marshal(map[string]any{
		"architecture": goarch(), "os": "linux", "created": time.Unix(1700000000, 0).UTC(),
		"config":  config,
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
		"history": []map[string]any{{"created": time.Unix(1700000000, 0).UTC(), "created_by": "kit " + name}},
	})
	if err != nil {
		return err
	}
	imageName := fmt.Sprintf("%x.json", sha256.Sum256(image))
	manifest, err := json.Marshal([]map[string]any{{
		"Config": imageName, "RepoTags": []string{name}, "Layers": []string{digest + "/layer.tar"},
	}})
	if err != nil {
		return err
	}
	return writeTar(w, []File{
		{Path: digest, Dir: true},
		{Path: digest + "/layer.tar", Body: layer},
		{Path: imageName, Body: image},
		{Path: "manifest.json", Body: manifest},
	})
}

func layerOf(files []File) ([]byte, error) {
	var b bytes.Buffer
	err := writeTar(&b, files)
	return b.Bytes(), err
}

func writeTar(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.Path, Mode: f.Mode, Size: int64(len(f.Body)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}
		switch {
		case f.Dir:
			h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case h.Mode == 0:
			h.Mode = 0o644
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(f.Body); err != nil {
			return err
		}
	}
	return tw.Close()
}

// BusyboxFiles is a small root file system around the host's static busybox.
func BusyboxFiles() ([]File, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox-static is not installed: %w", err)
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets: %w", err)
	}
	files := []File{
		{Path: "bin", Dir: true}, {Path: "etc", Dir: true}, {Path: "home", Dir: true}, {Path: "root", Dir: true, Mode: 0o700},
		{Path: "tmp", Dir: true, Mode: 0o1777}, {Path: "var", Dir: true}, {Path: "var/tmp", Dir: true, Mode: 0o1777},
		{Path: "usr", Dir: true}, {Path: "usr/bin", Dir: true}, {Path: "usr/bin/env", Link: "../../bin/busybox"},
		{Path: "data", Dir: true}, {Path: "data/seed", Body: []byte("seed\n")},
		{Path: "etc/passwd", Body: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\nguest:x:1000:1000:guest:/home:/bin/sh\n")},
		{Path: "etc/group", Body: []byte("root:x:0:\nwheel:x:10:guest\nguest:x:1000:\nnogroup:x:65534:\n")},
		{Path: "bin/busybox", Body: busybox, Mode: 0o755},
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			files = append(files, File{Path: "bin/" + applet, Link: "busybox"})
		}
	}
	return files, nil
}

// TrueSource is a program that does nothing.
const TrueSource = "package main\n\nfunc main() {}\n"

// TrueFiles is a root file system with one static program that does nothing.
func TrueFiles(work string) ([]File, error) {
	body, err := GoProgram(work, "true", TrueSource)
	if err != nil {
		return nil, err
	}
	return []File{{Path: "true", Body: body, Mode: 0o755}}, nil
}

// GoProgram builds a static program of one file in a folder below work.
func GoProgram(work, name, source string) ([]byte, error) {
	if bin := os.Getenv("BERTH_TEST_BIN"); bin != "" {
		// Made before, for a machine without Go.
		if body, err := os.ReadFile(filepath.Join(bin, "test-"+name)); err == nil {
			return body, nil
		}
	}
	dir := filepath.Join(work, "src-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", "out", "main.go")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return os.ReadFile(filepath.Join(dir, "out"))
}

// ProgramFiles is busybox plus host programs with the libraries they load.
func ProgramFiles(programs ...string) ([]File, error) {
	files, err := BusyboxFiles()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, fmt.Errorf("%s is not installed: %w", program, err)
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return nil, fmt.Errorf("list libraries of %s: %w", path, err)
		}
		wanted := []string{path}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				wanted = append(wanted, word)
			}
		}
		for _, name := range wanted {
			if seen[name] {
				continue
			}
			seen[name] = true
			body, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			files = append(files, File{Path: strings.TrimPrefix(name, "/"), Body: body, Mode: 0o755})
		}
	}
	return files, nil
}
