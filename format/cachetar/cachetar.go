// Package cachetar reads and writes archives of cache mounts: a tar whose
// first entry tells what mounts it holds, each of them in a folder of its own.
// A tar without that entry is the content of one mount. Archives come from
// anywhere: every name is made to stay below its mount, nothing but files,
// folders and links is let through, and all is counted.
package cachetar

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/berth-project/berth/lib/fault"
)

// index is the name of the first entry.
const index = "berth-cache.json"

// version of the format.
const version = 1

// Limits of what is read.
const (
	maxIndex  = 1 << 20 // bytes of the first entry
	maxMounts = 1000
	maxKey    = 1024 // bytes of a key
	maxName   = 4096 // bytes of a path
)

// Mount is one cache mount.
type Mount struct {
	// Key is BuildKit's name of it: a namespace, often empty, "/" and the id.
	Key string `json:"key"`
	// Target is where the step that made it had it; for people.
	Target string `json:"target,omitempty"`
	// HasBase says that it began as a copy of other files, as those with an
	// owner, a mode or a source do; its files may lie below a folder of that.
	HasBase bool `json:"has_base,omitempty"`
}

type contents struct {
	Version int     `json:"version"`
	Mounts  []Mount `json:"mounts"`
}

// Validate refuses a mount that no builder could have made.
func (m Mount) Validate() error {
	switch {
	case m.Key == "" || m.Key == "/":
		return fault.Invalidf("a cache mount has no id")
	case len(m.Key) > maxKey || len(m.Target) > maxName:
		return fault.Invalidf("the id of a cache mount, or its path, is too long")
	}
	for _, text := range []string{m.Key, m.Target} {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fault.Invalidf("the id of a cache mount, or its path, holds control characters: %q", text)
		}
	}
	return nil
}

// Writer writes an archive.
type Writer struct {
	tar *tar.Writer
}

// NewWriter begins an archive of mounts.
func NewWriter(w io.Writer, mounts []Mount) (*Writer, error) {
	b, err := json.MarshalIndent(contents{version, mounts}, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(mounts) > maxMounts || len(b) > maxIndex {
		return nil, fault.Invalidf("%d cache mounts are too many for one archive: export some at a time", len(mounts))
	}
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Name: index, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}); err != nil {
		return nil, err
	}
	_, err = t.Write(b)
	return &Writer{t}, err
}

// Entry begins one file of the mount of a number; h.Name is its path in the
// mount, "." the mount itself. What is written next is its content.
func (w *Writer) Entry(mount int, h tar.Header) error {
	h.Name = below(mount, h.Name)
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if h.Typeflag == tar.TypeLink {
		h.Linkname = below(mount, h.Linkname)
	}
	h.Format = tar.FormatPAX // times to the nanosecond, long names, large ids
	return w.tar.WriteHeader(&h)
}

func below(mount int, name string) string { return path.Join(strconv.Itoa(mount), name) }

func (w *Writer) Write(p []byte) (int, error) { return w.tar.Write(p) }

// Close ends the archive.
func (w *Writer) Close() error { return w.tar.Close() }

// Reader reads an archive.
type Reader struct {
	tar    *tar.Reader
	mounts []Mount
	first  *tar.Header // of an archive without an index
	left   int64
	count  int64
	at     int
}

// Limits of an archive, of all its mounts together.
type Limits struct {
	Bytes   int64
	Entries int64
}

// NewReader begins to read.
func NewReader(r io.Reader, l Limits) (*Reader, error) {
	a := &Reader{tar: tar.NewReader(r), left: l.Bytes, count: l.Entries}
	h, err := a.tar.Next()
	if errors.Is(err, io.EOF) {
		return nil, fault.Invalidf("the archive is empty")
	}
	if err != nil {
		return nil, fault.Invalidf("read archive: it is no tar, or not all of it: %w", err)
	}
	if h.Name != index {
		a.first = h
		return a, nil
	}
	b, err := io.ReadAll(io.LimitReader(a.tar, maxIndex+1))
	if err != nil {
		return nil, fault.Invalidf("read archive: %w", err)
	}
	if len(b) > maxIndex {
		return nil, fault.Invalidf("%s exceeds %d bytes", index, maxIndex)
	}
	var c contents
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&c); err != nil {
		return nil, fault.Invalidf("%s: %w", index, err)
	}
	switch {
	case c.Version != version:
		return nil, fault.Invalidf("the archive has version %d: this program knows version %d", c.Version, version)
	case len(c.Mounts) == 0:
		return nil, fault.Invalidf("the archive holds no cache mount")
	case len(c.Mounts) > maxMounts:
		return nil, fault.Invalidf("the archive holds more than %d cache mounts", maxMounts)
	}
	seen := map[string]bool{}
	for _, m := range c.Mounts {
		if err := m.Validate(); err != nil {
			return nil, err
		}
		name := fmt.Sprint(m.HasBase, m.Key)
		if seen[name] {
			return nil, fault.Invalidf("the archive holds the cache mount %q twice", m.Key)
		}
		seen[name] = true
	}
	a.mounts = c.Mounts
	return a, nil
}

// Mounts tells what the archive holds; nil where it is the content of one
// mount that it does not name.
func (a *Reader) Mounts() []Mount { return a.mounts }

// Next goes to the next entry, until io.EOF: the number of its mount, which
// never falls, and a header with clean paths below that mount.
func (a *Reader) Next() (mount int, h *tar.Header, err error) {
	h = a.first
	a.first = nil
	if h == nil {
		if h, err = a.tar.Next(); errors.Is(err, io.EOF) {
			return 0, nil, io.EOF
		}
		if err != nil {
			return 0, nil, fault.Invalidf("read archive: %w", err)
		}
	}
	if a.count--; a.count < 0 {
		return 0, nil, fault.Invalidf("the archive holds too many files")
	}
	if a.left -= max(h.Size, 0); a.left < 0 {
		return 0, nil, fault.Invalidf("the archive holds too many bytes")
	}
	name := h.Name
	if err := plain(h); err != nil {
		return 0, nil, fault.Invalidf("entry %q: %w", name, err)
	}
	if mount, h.Name, err = a.place(name); err != nil {
		return 0, nil, fault.Invalidf("entry %q: %w", name, err)
	}
	if mount < a.at {
		return 0, nil, fault.Invalidf("entry %q: cache mounts are not in their order", name)
	}
	a.at = mount
	if h.Name == "." && h.Typeflag != tar.TypeDir {
		return 0, nil, fault.Invalidf("entry %q: a cache mount is a folder", name)
	}
	if h.Typeflag == tar.TypeLink {
		other := 0
		if other, h.Linkname, err = a.place(h.Linkname); err != nil {
			return 0, nil, fault.Invalidf("entry %q: hard link: %w", name, err)
		}
		if other != mount || h.Linkname == "." {
			return 0, nil, fault.Invalidf("entry %q: hard link to what is no file of its cache mount", name)
		}
	}
	return mount, h, nil
}

// plain refuses what a cache mount does not hold.
func plain(h *tar.Header) error {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return errors.New("sparse files are not taken")
		}
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
		if h.Size != 0 {
			return errors.New("it has content and is no file")
		}
	case tar.TypeReg:
	case tar.TypeGNUSparse:
		return errors.New("sparse files are not taken")
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return errors.New("devices and pipes are not taken")
	default:
		return fmt.Errorf("entries of type %q are not taken", string(h.Typeflag))
	}
	if h.Typeflag == tar.TypeSymlink && (h.Linkname == "" || len(h.Linkname) > maxName || strings.ContainsRune(h.Linkname, 0)) {
		return errors.New("the symbolic link has no fit target")
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return errors.New("the owner is out of range")
	}
	return nil
}

// place divides a path of the archive into its mount and the path in that.
func (a *Reader) place(name string) (int, string, error) {
	if name == "" || len(name) > maxName || strings.ContainsRune(name, 0) {
		return 0, "", errors.New("the path is empty, too long or broken")
	}
	if strings.HasPrefix(name, "/") {
		return 0, "", errors.New("the path is absolute")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return 0, "", errors.New("the path leaves its cache mount")
		}
	}
	clean := path.Clean(name)
	if a.mounts == nil {
		return 0, clean, nil
	}
	number, rest, _ := strings.Cut(clean, "/")
	n, err := strconv.Atoi(number)
	if err != nil || strconv.Itoa(n) != number || n < 0 || n >= len(a.mounts) {
		return 0, "", errors.New("it is of none of the cache mounts")
	}
	if rest == "" {
		rest = "."
	}
	return n, rest, nil
}

// Read reads the content of the file that Next has told of.
func (a *Reader) Read(p []byte) (int, error) {
	n, err := a.tar.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fault.Invalidf("read archive: %w", err)
	}
	return n, err
}
