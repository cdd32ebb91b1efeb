// Package recipe reads the recipes of the official library: a manifest and a
// Dockerfile. Of Dockerfiles it reads the part that needs no builder: packages
// of Debian, commands, files of the recipe, and what an image's configuration
// says. The same Dockerfile works with any builder. Pure functions of bytes.
package recipe

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Limits of a recipe.
const (
	maxManifest   = 64 << 10
	maxDockerfile = 64 << 10
	maxFile       = 8 << 20
	maxFiles      = 1000
)

// Recipe is one image of the library.
type Recipe struct {
	Name     string
	Manifest Manifest
	Stages   []Stage // in order; the last is the image
	Files    []File  // of rootfs/, sorted by path
}

// File is one file of a recipe's rootfs folder.
type File struct {
	Path string // relative to the image's root
	Body []byte
}

// Executable says whether the file is a program: one that begins with "#!".
func (f File) Executable() bool { return strings.HasPrefix(string(f.Body), "#!") }

// Manifest is what a Dockerfile cannot say (library/<name>/manifest.json).
// Ports, volumes, command and health check are the Dockerfile's.
type Manifest struct {
	Description Text     `json:"description"`
	Licence     string   `json:"licence"`           // SPDX expression of the main program
	Package     string   `json:"package,omitempty"` // whose version is the image's
	Aliases     []string `json:"aliases,omitempty"` // further names of the image
	Tags        []string `json:"tags,omitempty"`    // further tags beside latest and the version
	RunsAs      string   `json:"runs_as,omitempty"` // user of the main process; "" is root
	Limit       int      `json:"limit_mb"`          // the image must stay below, in MB (10^6 bytes)
	Hub         *Hub     `json:"hub,omitempty"`
	Check       Check    `json:"check"`
}

// Text is prose in the languages of the house.
type Text struct {
	English string `json:"en"`
	Spanish string `json:"es"`
}

// Hub is what Docker Hub's image of the name weighs, as its page tells.
type Hub struct {
	Image    string  `json:"image"`
	MB       float64 `json:"mb"`       // unpacked, in 10^6 bytes
	Recorded string  `json:"recorded"` // when and where the number was seen
}

// Check is how the test runs the image.
type Check struct {
	Env     []string   `json:"env,omitempty"`
	Args    []string   `json:"args,omitempty"`
	Tmpfs   []string   `json:"tmpfs,omitempty"`
	Ready   []string   `json:"ready,omitempty"`   // command in the container that succeeds when it serves
	Volumes []string   `json:"volumes,omitempty"` // folders to keep besides the image's volumes
	Write   string     `json:"write,omitempty"`   // shell in the container: put something into the volume
	Read    string     `json:"read,omitempty"`    // shell in the container: succeeds when it is there
	Log     string     `json:"log,omitempty"`     // regular expression that the log matches
	OneShot [][]string `json:"one_shot,omitempty"`
	Stop    int        `json:"stop_seconds,omitempty"` // grace time, 10 where it is not said
	With    []Beside   `json:"with,omitempty"`         // containers that must run beside it
}

// Beside is a container of another image of the library that a check needs.
type Beside struct {
	Image string   `json:"image"`
	Alias string   `json:"alias"`
	Env   []string `json:"env,omitempty"`
}

// Stage is one FROM with what follows.
type Stage struct {
	Name    string // after AS, or ""
	From    string // "scratch", or an image of the library
	Steps   []Step
	Changes []string // configuration instructions, as `docker commit --change` takes them
}

// Step is one change of the file system. Exactly one field is set.
type Step struct {
	Root    bool     // unpack a Debian root
	Install []string // Debian packages, without recommended ones
	Run     string   // a command for /bin/sh
	Rootfs  bool     // copy the recipe's rootfs to /
	Copy    *Copy    // copy from an earlier stage
}

// Copy takes a file or folder of an earlier stage.
type Copy struct{ Stage, From, To string }

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
)

// Names lists the recipes of a library, sorted.
func Names(library fs.FS) ([]string, error) {
	found, err := fs.Glob(library, "*/manifest.json")
	if err != nil {
		return nil, err
	}
	for i, f := range found {
		found[i] = path.Dir(f)
	}
	slices.Sort(found)
	return found, nil
}

// Read reads one recipe of a library.
func Read(library fs.FS, name string) (*Recipe, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("recipe %q: not a name of lower-case letters and digits", name)
	}
	r := &Recipe{Name: name}
	text, err := file(library, path.Join(name, "manifest.json"), maxManifest)
	if err != nil {
		return nil, err
	}
	if r.Manifest, err = ParseManifest(text); err != nil {
		return nil, fmt.Errorf("%s/manifest.json: %w", name, err)
	}
	if text, err = file(library, path.Join(name, "Dockerfile"), maxDockerfile); err != nil {
		return nil, err
	}
	if r.Stages, err = ParseDockerfile(text); err != nil {
		return nil, fmt.Errorf("%s/Dockerfile: %w", name, err)
	}
	root := path.Join(name, "rootfs")
	err = fs.WalkDir(library, root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if p == root {
				return nil // no rootfs, no files
			}
			return err
		}
		if len(r.Files) >= maxFiles {
			return fmt.Errorf("%s: more than %d files", root, maxFiles)
		}
		body, err := file(library, p, maxFile)
		r.Files = append(r.Files, File{Path: strings.TrimPrefix(p, root+"/"), Body: body})
		return err
	})
	return r, err
}

func file(library fs.FS, name string, limit int64) ([]byte, error) {
	info, err := fs.Stat(library, name)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return fs.ReadFile(library, name)
}

// ParseManifest reads and checks a manifest.
func ParseManifest(text []byte) (Manifest, error) {
	var m Manifest
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, err
	}
	if d.More() {
		return m, fmt.Errorf("something follows the manifest")
	}
	switch {
	case m.Description.English == "" || m.Description.Spanish == "":
		return m, fmt.Errorf("description: en and es are needed")
	case m.Licence == "":
		return m, fmt.Errorf("licence is needed")
	case m.Limit <= 0:
		return m, fmt.Errorf("limit_mb is needed")
	case m.Hub != nil && (m.Hub.Image == "" || m.Hub.MB <= 0 || m.Hub.Recorded == ""):
		return m, fmt.Errorf("hub: image, mb and recorded are needed")
	case m.Package != "" && !packageForm.MatchString(m.Package):
		return m, fmt.Errorf("package %q: not a package's name", m.Package)
	}
	for _, a := range m.Aliases {
		if !nameForm.MatchString(a) {
			return m, fmt.Errorf("alias %q: not an image's name", a)
		}
	}
	for _, t := range m.Tags {
		if !nameForm.MatchString(t) {
			return m, fmt.Errorf("tag %q: not an image's tag", t)
		}
	}
	if _, err := regexp.Compile(m.Check.Log); err != nil {
		return m, fmt.Errorf("check.log: %w", err)
	}
	return m, nil
}
