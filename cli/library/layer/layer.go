// Package layer makes a layer that depends on its content alone: sorted, with
// times no later than one moment, without what one run of a program leaves
// behind (logs, locks, caches, keys, machine ids). It is about tar archives
// and knows nothing of engines.
package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of a layer.
const (
	maxEntries = 2 << 20
	maxSmall   = 1 << 20 // a file that is changed on its way
)

// Tree is the content of a layer. Bodies lie in a spool file.
type Tree struct {
	entries map[string]*entry
	spool   *os.File
	end     int64
}

type entry struct {
	h      tar.Header
	offset int64
	small  []byte // body that replaces the spooled one
	whole  bool
}

// New makes an empty tree whose bodies lie in a temporary file below dir ("" is
// the system's folder).
func New(dir string) (*Tree, error) {
	f, err := os.CreateTemp(dir, "berth-layer-")
	if err != nil {
		return nil, err
	}
	// The name is not needed: nothing is left when the program is killed.
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Tree{entries: map[string]*entry{}, spool: f}, nil
}

// Close frees the spool.
func (t *Tree) Close() error { return t.spool.Close() }

// Len is how many entries the tree has.
func (t *Tree) Len() int { return len(t.entries) }

// Add puts an entry into the tree; a later one of the same name replaces it,
// except that a folder stays. Names are clean and relative. Links of parent
// folders that are in the tree are followed, as an unpacking dpkg does.
func (t *Tree) Add(h *tar.Header, body io.Reader) error {
	name, err := clean(h.Name)
	if err != nil || name == "." {
		return err
	}
	if name, err = t.follow(name); err != nil {
		return err
	}
	if len(t.entries) >= maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	e := &entry{h: *h, offset: t.end}
	e.h.Name = name
	switch h.Typeflag {
	case tar.TypeReg:
		n, err := io.Copy(&appender{t}, body)
		if err != nil {
			return err
		}
		if n != h.Size {
			return fmt.Errorf("entry %s: cut short", name)
		}
	case tar.TypeDir:
		if old, ok := t.entries[name]; ok {
			if old.h.Typeflag == tar.TypeDir {
				old.h.Mode, old.h.Uid, old.h.Gid = h.Mode, h.Uid, h.Gid
				return nil
			}
			if old.h.Typeflag == tar.TypeSymlink {
				return nil // a folder reached by a link
			}
		}
	case tar.TypeLink:
		target, err := clean(h.Linkname)
		if err != nil {
			return err
		}
		if e.h.Linkname, err = t.follow(target); err != nil {
			return err
		}
	case tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("entry %s: type %q is not of a layer", name, h.Typeflag)
	}
	t.entries[name] = e
	return nil
}

// Put adds a file that the caller has in memory.
func (t *Tree) Put(name string, mode int64, body []byte, when time.Time) error {
	return t.Add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(body)), ModTime: when}, bytes.NewReader(body))
}

// Folder adds a folder where there is none.
func (t *Tree) Folder(name string, mode int64, when time.Time) error {
	if at, err := t.follow(name); err != nil || t.entries[at] != nil {
		return err
	}
	return t.Add(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: when}, nil)
}

// Read adds all entries of an archive.
func (t *Tree) Read(r io.Reader) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := t.Add(h, archive); err != nil {
			return err
		}
	}
}

// CopyTo copies a file or the content of a folder to another tree.
func (t *Tree) CopyTo(to *Tree, from, at string) error {
	from, at = strings.Trim(from, "/"), strings.Trim(at, "/")
	found := false
	for _, name := range t.names() {
		e := t.entries[name]
		rest, inside := strings.CutPrefix(name, from+"/")
		if !inside && name != from {
			continue
		}
		found = true
		if name == from && e.h.Typeflag == tar.TypeDir {
			continue
		}
		h := e.h
		h.Name = path.Join(at, rest)
		if e.h.Typeflag == tar.TypeLink {
			target, ok := strings.CutPrefix(e.h.Linkname, from+"/")
			if !ok {
				return fmt.Errorf("/%s is a hard link to /%s, which is not copied", name, e.h.Linkname)
			}
			h.Linkname = path.Join(at, target)
		}
		if err := to.Add(&h, t.body(e)); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("/%s: no such file in that stage", from)
	}
	return nil
}

func (t *Tree) body(e *entry) io.Reader {
	if e.whole {
		return bytes.NewReader(e.small)
	}
	return io.NewSectionReader(t.spool, e.offset, e.h.Size)
}

// follow resolves links of the parent folders of a name.
func (t *Tree) follow(name string) (string, error) {
	parts := strings.Split(name, "/")
	at := ""
	for hops := 0; len(parts) > 1; {
		next := path.Join(at, parts[0])
		parts = parts[1:]
		e, ok := t.entries[next]
		if !ok || e.h.Typeflag != tar.TypeSymlink {
			at = next
			continue
		}
		if hops++; hops > 40 {
			return "", fmt.Errorf("entry %s: too many links", name)
		}
		to := e.h.Linkname
		if !path.IsAbs(to) {
			to = path.Join(at, to)
		}
		// Rooted cleaning keeps ".." inside.
		to = strings.TrimPrefix(path.Clean("/"+to), "/")
		parts, at = append(strings.Split(to, "/"), parts...), ""
	}
	return path.Join(at, parts[0]), nil
}

func clean(name string) (string, error) {
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("entry %q leaves the root", name)
	}
	return c, nil
}

type appender struct{ t *Tree }

func (a *appender) Write(p []byte) (int, error) {
	n, err := a.t.spool.WriteAt(p, a.t.end)
	a.t.end += int64(n)
	return n, err
}

func (t *Tree) names() []string {
	names := make([]string, 0, len(t.entries))
	for n := range t.entries {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Write writes the tree as a plain tar archive: sorted by name, owners by
// number, times clamped to epoch.
func (t *Tree) Write(w io.Writer, epoch time.Time) error {
	names := t.names()
	t.leadLinks(names)
	archive := tar.NewWriter(w)
	for _, name := range names {
		e := t.entries[name]
		h := tar.Header{
			Name: name, Typeflag: e.h.Typeflag, Linkname: e.h.Linkname, Mode: e.h.Mode & 0o7777, Uid: e.h.Uid, Gid: e.h.Gid,
			ModTime: e.h.ModTime.Truncate(time.Second), Devmajor: e.h.Devmajor, Devminor: e.h.Devminor,
		}
		if h.ModTime.After(epoch) || h.ModTime.Unix() < 0 {
			h.ModTime = epoch
		}
		for _, k := range []string{"SCHILY.xattr.security.capability"} {
			if v, ok := e.h.PAXRecords[k]; ok {
				h.PAXRecords = map[string]string{k: v}
			}
		}
		switch e.h.Typeflag {
		case tar.TypeDir:
			h.Name += "/"
		case tar.TypeReg:
			h.Size = e.h.Size
			if e.whole {
				h.Size = int64(len(e.small))
			}
		}
		if err := archive.WriteHeader(&h); err != nil {
			return fmt.Errorf("entry %s: %w", name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.Copy(archive, t.body(e)); err != nil {
				return fmt.Errorf("entry %s: %w", name, err)
			}
		}
	}
	return archive.Close()
}

// leadLinks makes the first name of each group of hard links the file itself.
func (t *Tree) leadLinks(names []string) {
	lead := map[string]string{}
	for _, name := range names {
		e := t.entries[name]
		if e.h.Typeflag != tar.TypeLink {
			continue
		}
		target := e.h.Linkname
		if l, ok := lead[target]; ok {
			e.h.Linkname = l
			continue
		}
		file, ok := t.entries[target]
		if !ok || file.h.Typeflag != tar.TypeReg {
			continue // the file is in a layer below
		}
		if name > target {
			lead[target] = target
			continue
		}
		lead[target] = name
		whole := *file
		whole.h.Name = name
		t.entries[name] = &whole
		t.entries[target] = &entry{h: tar.Header{Name: target, Typeflag: tar.TypeLink, Linkname: name, Mode: file.h.Mode, Uid: file.h.Uid, Gid: file.h.Gid, ModTime: file.h.ModTime}}
	}
}

// Digest is the SHA-256 of what Write writes, and its size in bytes.
func (t *Tree) Digest(epoch time.Time) (string, int64, error) {
	h := sha256.New()
	c := &counter{w: h}
	if err := t.Write(c, epoch); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), c.n, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// What a run leaves behind and no image needs: folders whose content goes, and
// files. Keys and cookies that packages make at their installation are
// secrets that all users of an image would share.
var (
	emptied = []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "var/cache/apt", "var/cache/berth", "var/lib/apt/lists", "var/log", "var/cache/ldconfig", "var/cache/man"}
	dropped = []string{
		".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", "etc/machine-id", "var/lib/dbus/machine-id", "etc/.pwd.lock",
		"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
		"etc/ssh/ssh_host_*", "etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem", "root/.rnd",
		"var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/lib/dpkg/triggers/Lock", "var/lib/dpkg/triggers/*-old", "var/cache/debconf/*-old",
		"var/lib/dpkg/available", "var/lib/systemd/random-seed", "var/lib/rabbitmq/.erlang.cookie",
	}
)

// Tidy takes away what depends on one run: see the lists above. The day of the
// last change of passwords becomes the epoch's.
func (t *Tree) Tidy(epoch time.Time) error {
	for _, name := range t.names() {
		e := t.entries[name]
		if e == nil {
			continue
		}
		if junk(name, e) {
			delete(t.entries, name)
			continue
		}
		if name == "etc/shadow" && e.h.Typeflag == tar.TypeReg {
			if err := t.edit(e, func(b []byte) []byte { return shadow(b, epoch) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func junk(name string, e *entry) bool {
	if e.h.Typeflag == tar.TypeSymlink && e.h.Linkname == "ssl-cert-snakeoil.pem" {
		return true
	}
	for _, folder := range emptied {
		if strings.HasPrefix(name, folder+"/") {
			// Folders of /var/log and of /run are where services write; links in
			// /var/log lead to the container's log.
			keep := e.h.Typeflag == tar.TypeDir && (folder == "var/log" || folder == "run") || e.h.Typeflag == tar.TypeSymlink && folder == "var/log"
			return !keep
		}
	}
	for _, pattern := range dropped {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

func (t *Tree) edit(e *entry, change func([]byte) []byte) error {
	if e.h.Size > maxSmall {
		return fmt.Errorf("entry %s: larger than %d bytes", e.h.Name, maxSmall)
	}
	b, err := io.ReadAll(t.body(e))
	if err != nil {
		return err
	}
	e.small, e.whole = change(b), true
	e.h.Size = int64(len(e.small))
	return nil
}

// shadow sets the third field of shadow(5).
func shadow(b []byte, epoch time.Time) []byte {
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		if f := strings.Split(l, ":"); len(f) == 9 {
			f[2] = strconv.FormatInt(epoch.Unix()/86400, 10)
			lines[i] = strings.Join(f, ":")
		}
	}
	return []byte(strings.Join(lines, "\n"))
}
