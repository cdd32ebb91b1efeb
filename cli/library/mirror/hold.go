package mirror

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// partPrefix begins the name of a file that is being fetched.
const partPrefix = ".part-"

// lockName is the file of a cache that everybody who works with it holds a
// shared lock on, as long as the program lives. Its text is the cache's id.
const lockName = "lock"

var validID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// hold is one program's share in a cache.
type hold struct {
	file  *os.File
	id    string
	alone bool
}

// take joins those who work with a cache. Who finds nobody else there removes
// what a killed program has left half fetched. A cache that cannot be written,
// as on a disk that came from elsewhere, has nothing to remove and no id.
func take(cache string) (*hold, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return &hold{}, nil // whoever needs it says so
	}
	f, err := os.OpenFile(filepath.Join(cache, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return &hold{}, nil
	}
	if err != nil {
		return nil, err
	}
	h := &hold{file: f}
	if err := h.enter(cache); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return h, nil
}

func (h *hold) enter(cache string) error {
	fd := int(h.file.Fd())
	switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		h.alone = true
		if err := sweep(cache); err != nil {
			return err
		}
	case !errors.Is(err, unix.EWOULDBLOCK):
		return err
	}
	// Who is alone names the cache where nobody has; others find the name.
	if h.alone {
		if err := h.name(); err != nil {
			return err
		}
	}
	for {
		if err := unix.Flock(fd, unix.LOCK_SH); !errors.Is(err, unix.EINTR) {
			if err != nil || h.alone {
				return err
			}
			return h.read()
		}
	}
}

// name reads the cache's id, or gives it one.
func (h *hold) name() error {
	if h.read() == nil {
		return nil
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	h.id = hex.EncodeToString(b[:])
	if err := h.file.Truncate(0); err != nil {
		return err
	}
	_, err := h.file.WriteAt([]byte(h.id), 0)
	return err
}

func (h *hold) read() error {
	b := make([]byte, 32)
	if n, err := h.file.ReadAt(b, 0); n < len(b) {
		return err
	}
	if !validID.Match(b) {
		return errors.New("it holds no id of a cache: remove it")
	}
	h.id = string(b)
	return nil
}

// sweep removes files that were never wholly fetched.
func sweep(cache string) error {
	return filepath.WalkDir(cache, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(d.Name(), partPrefix) {
			return err
		}
		return os.Remove(name)
	})
}
