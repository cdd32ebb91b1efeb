package debian

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/lib/inflate"
)

// Limits of one .deb.
const (
	maxControl  = 64 << 20 // unpacked control archive, in bytes
	maxData     = 8 << 30  // unpacked data archive, in bytes
	maxEntries  = 1 << 20
	maxPathname = 4096
)

// Deb is an opened .deb. Its files are read once, in order, by Files.
type Deb struct {
	Control  Stanza
	Scripts  map[string][]byte // members of the control archive besides "control"
	Packaged time.Time         // when the .deb was made

	data io.ReadCloser
}

// OpenDeb reads a .deb (deb(5)) up to its data archive. Close releases memory.
func OpenDeb(r io.Reader) (*Deb, error) {
	a := &archive{r: r}
	if err := a.magic(); err != nil {
		return nil, err
	}
	name, when, err := a.next()
	if err != nil {
		return nil, err
	}
	version, err := io.ReadAll(io.LimitReader(a, 64))
	if err != nil {
		return nil, err
	}
	if name != "debian-binary" || !bytes.HasPrefix(version, []byte("2.")) {
		return nil, fmt.Errorf("not a .deb of format 2")
	}
	d := &Deb{Packaged: when}
	for {
		name, _, err := a.next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("no data archive")
		}
		if err != nil {
			return nil, err
		}
		switch {
		case strings.HasPrefix(name, "_"): // to be ignored, says deb(5)
		case strings.HasPrefix(name, "control.tar") && d.Control == nil:
			if err := d.control(a); err != nil {
				return nil, fmt.Errorf("control archive: %w", err)
			}
		case strings.HasPrefix(name, "data.tar") && d.Control != nil:
			plain, err := inflate.NewReader(a)
			if err != nil {
				return nil, fmt.Errorf("data archive: %w", err)
			}
			d.data = plain
			return d, nil
		default:
			return nil, fmt.Errorf("unexpected member %q", name)
		}
	}
}

// DebTime is when a .deb was made: the time of its first member.
func DebTime(r io.Reader) (time.Time, error) {
	a := &archive{r: r}
	if err := a.magic(); err != nil {
		return time.Time{}, err
	}
	_, when, err := a.next()
	return when, err
}

// Close releases the memory of the decompressor.
func (d *Deb) Close() error { return d.data.Close() }

func (d *Deb) control(r io.Reader) error {
	plain, err := inflate.NewReader(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	t := tar.NewReader(bounded(plain, maxControl))
	d.Scripts = map[string][]byte{}
	left := int64(maxControl) // what members say of their size counts: they may have holes
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n > 1024 {
			return fmt.Errorf("too many members")
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Clean(h.Name)
		if strings.Contains(name, "/") {
			return fmt.Errorf("member %q in a folder", h.Name)
		}
		if left -= h.Size; left < 0 {
			return errTooLarge
		}
		body, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		d.Scripts[name] = body
	}
	text, ok := d.Scripts["control"]
	if !ok {
		return fmt.Errorf("no control file")
	}
	delete(d.Scripts, "control")
	return ReadStanzas(bytes.NewReader(text), nil, func(s Stanza) error {
		if d.Control != nil {
			return fmt.Errorf("more than one paragraph")
		}
		d.Control = s
		return nil
	})
}

// Files calls fn for every entry of the data archive. Names and targets of
// hard links are clean, relative and stay below the root; "." is left out.
// body is valid during the call.
func (d *Deb) Files(fn func(h *tar.Header, body io.Reader) error) error {
	t := tar.NewReader(bounded(d.data, maxData))
	left := int64(maxData)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n > maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		if h.Name, err = below(h.Name); err != nil {
			return err
		}
		if left -= h.Size; left < 0 {
			return errTooLarge
		}
		switch h.Typeflag {
		case tar.TypeLink:
			if h.Linkname, err = below(h.Linkname); err != nil {
				return err
			}
		case tar.TypeReg, tar.TypeSymlink, tar.TypeDir:
		default:
			return fmt.Errorf("entry %q: type %q is not of a package", h.Name, h.Typeflag)
		}
		if h.Name == "." {
			continue
		}
		if err := fn(h, t); err != nil {
			return err
		}
	}
}

// below cleans an archive's name and refuses one that leaves the root.
func below(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") || len(name) > maxPathname || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry %q leaves the root", name)
	}
	return clean, nil
}

var errTooLarge = errors.New("unpacks to more than the limit")

// bounded fails, rather than ends, behind n bytes.
func bounded(r io.Reader, n int64) io.Reader { return &limit{r, n} }

type limit struct {
	r io.Reader
	n int64
}

func (l *limit) Read(p []byte) (int, error) {
	if l.n <= 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > l.n {
		p = p[:l.n]
	}
	n, err := l.r.Read(p)
	l.n -= int64(n)
	return n, err
}

// archive reads the members of a Unix ar archive.
type archive struct {
	r    io.Reader
	left int64 // of the member
	pad  int64
}

func (a *archive) magic() error {
	var b [8]byte
	if _, err := io.ReadFull(a.r, b[:]); err != nil || string(b[:]) != "!<arch>\n" {
		return fmt.Errorf("not an ar archive")
	}
	return nil
}

// next goes to the next member and gives its name and time.
func (a *archive) next() (string, time.Time, error) {
	if _, err := io.CopyN(io.Discard, a.r, a.left+a.pad); err != nil {
		return "", time.Time{}, fmt.Errorf("member cut short: %w", err)
	}
	a.left, a.pad = 0, 0
	var b [60]byte
	if _, err := io.ReadFull(a.r, b[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("member's head cut short")
		}
		return "", time.Time{}, err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(b[48:58])), 10, 64)
	if err != nil || size < 0 || size > maxPackageSize || string(b[58:60]) != "`\n" {
		return "", time.Time{}, fmt.Errorf("member's head is broken")
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(b[16:28])), 10, 64)
	if err != nil || seconds < 0 {
		return "", time.Time{}, fmt.Errorf("member's time is broken")
	}
	a.left, a.pad = size, size%2
	return strings.TrimSuffix(strings.TrimSpace(string(b[:16])), "/"), time.Unix(seconds, 0).UTC(), nil
}

func (a *archive) Read(p []byte) (int, error) {
	if a.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > a.left {
		p = p[:a.left]
	}
	n, err := a.r.Read(p)
	a.left -= int64(n)
	if err == io.EOF && a.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
