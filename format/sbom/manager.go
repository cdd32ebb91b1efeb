package sbom

import (
	"bufio"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"net/textproto"
	"path"
	"regexp"
	"strings"

	"github.com/berth-project/berth/format/debian"
)

// distro is how package URLs name the system, as in debian-13.
func (s *scan) distro() string {
	if s.r.OS.ID == "" || s.r.OS.Version == "" {
		return s.r.OS.ID
	}
	return s.r.OS.ID + "-" + s.r.OS.Version
}

// vendor is the namespace of the system's packages.
func (s *scan) vendor(otherwise string) string {
	if s.r.OS.ID != "" {
		return s.r.OS.ID
	}
	return otherwise
}

// dpkg reads its status file, or one package's part of it (distroless images
// have a folder of these).
func (s *scan) dpkg(name string, r io.Reader) error {
	return debian.ReadStanzas(r, []string{"Package", "Version", "Architecture", "Status", "Source"}, func(c debian.Stanza) error {
		if state := strings.Fields(c.Get("Status")); len(state) > 0 && state[len(state)-1] != "installed" {
			return nil
		}
		source, version, _ := strings.Cut(c.Get("Source"), " ")
		if version = strings.Trim(version, "()"); version != "" {
			source += "@" + version
		}
		return s.add(Package{
			Type: "deb", Name: s.vendor("debian") + "/" + c.Get("Package"), Version: c.Get("Version"),
			Qualifiers: map[string]string{"arch": c.Get("Architecture"), "distro": s.distro(), "upstream": source},
		}, name)
	})
}

// apk reads Alpine's list: a letter, a colon and a value in each line, an empty
// line between packages.
func (s *scan) apk(name string, r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	field := map[string]string{}
	end := func() error {
		p := Package{Type: "apk", Version: field["V"], Licence: field["L"], Qualifiers: map[string]string{"arch": field["A"], "distro": s.distro()}}
		if field["P"] != "" {
			p.Name = s.vendor("alpine") + "/" + field["P"]
		}
		if o := field["o"]; o != field["P"] {
			p.Qualifiers["upstream"] = o
		}
		field = map[string]string{}
		return s.add(p, name)
	}
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		switch {
		case !ok:
			if err := end(); err != nil {
				return err
			}
		case len(key) == 1 && strings.Contains("PVALo", key):
			field[key] = value
		}
	}
	return end()
}

// python reads the metadata of a distribution: a mail's headers.
func (s *scan) python(name string, r io.Reader) error {
	h, err := textproto.NewReader(bufio.NewReader(r)).ReadMIMEHeader()
	if len(h) == 0 {
		return err
	}
	licence := h.Get("License-Expression")
	if licence == "" {
		licence = h.Get("License")
	}
	return s.add(Package{Type: "pypi", Name: pythonName.ReplaceAllString(strings.ToLower(h.Get("Name")), "-"), Version: h.Get("Version"), Licence: licence}, name)
}

// pythonName is what stands for a single dash in a normalised name (PEP 503).
var pythonName = regexp.MustCompile(`[-_.]+`)

// ofModule tells whether a folder is that of an npm package: other package.json
// files are parts of packages or a project's own.
func ofModule(dir string) bool {
	parent := path.Dir(dir)
	if strings.HasPrefix(path.Base(parent), "@") {
		parent = path.Dir(parent)
	}
	return path.Base(parent) == "node_modules"
}

// npm reads a package.json.
func (s *scan) npm(name string, r io.Reader) error {
	var p struct {
		Name, Version string
		License       any // a text, or of old {"type": …}
	}
	if err := json.NewDecoder(r).Decode(&p); err != nil {
		return err
	}
	licence, _ := p.License.(string)
	return s.add(Package{Type: "npm", Name: p.Name, Version: p.Version, Licence: licence}, name)
}

// gem takes name and version from the name of the file, which is Ruby.
func (s *scan) gem(name string) error {
	m := gemName.FindStringSubmatch(path.Base(name))
	if m == nil {
		return nil
	}
	return s.add(Package{Type: "gem", Name: m[1], Version: m[2], Qualifiers: map[string]string{"platform": m[3]}}, name)
}

var gemName = regexp.MustCompile(`^(.+?)-([0-9][0-9A-Za-z.]*)(?:-(.+))?\.gemspec$`)

// program reads what Go's linker has written into a program: its modules.
func (s *scan) program(name string) error {
	f, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	at, ok := f.(io.ReaderAt)
	if !ok {
		return nil
	}
	var magic [4]byte
	if _, err := at.ReadAt(magic[:], 0); err != nil || string(magic[:]) != "\x7fELF" {
		return nil
	}
	info, err := buildinfo.Read(at)
	if err != nil {
		return nil // not of Go
	}
	add := func(module, version string) error {
		return s.add(Package{Type: "golang", Name: module, Version: version}, name)
	}
	if err := add("stdlib", strings.TrimPrefix(strings.Fields(info.GoVersion + " ")[0], "go")); err != nil {
		return err
	}
	if err := add(info.Main.Path, info.Main.Version); err != nil {
		return err
	}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		if err := add(d.Path, d.Version); err != nil {
			return err
		}
	}
	return nil
}
