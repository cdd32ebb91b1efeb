// Package mirror fetches from a Debian mirror: release files whose signature
// is checked, indexes and packages whose digest is checked. What it fetched it
// keeps in a cache by digest, from which it also works without a network. It
// knows nothing of images.
package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/debian"
	"github.com/berth-project/berth/lib/inflate"
)

// Limits of what is fetched.
const (
	maxRelease = 16 << 20
	maxIndex   = 256 << 20 // compressed
	maxPlain   = 2 << 30
	tries      = 3
	stall      = 60 * time.Second // without a byte
)

// DefaultKeyring is where Debian's package of the same name puts its keys.
const DefaultKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Options says where packages come from. Its zero value is Debian's mirror as
// the host's apt has it.
type Options struct {
	Main         string // address of the archive; "" as the host's apt has it
	Security     string // address of the security archive; "" as the host's apt, "none" for none
	Suite        string // code name of a release
	Architecture string // as Debian says it
	Keyring      string // file of keys; "" is DefaultKeyring
	Cache        string // folder
	Offline      bool   // use the cache alone
	Client       *http.Client
}

// Mirror is one or two archives and a cache.
type Mirror struct {
	o     Options
	keys  openpgp.EntityList
	users map[string]*url.Userinfo // by address of an archive: who asks, never shown
	hold  *hold

	mu    sync.Mutex
	whole map[string]bool // files of the cache whose digest was seen, by path
}

var (
	// ErrOffline says that something is not in the cache and must not be fetched.
	ErrOffline = errors.New(locale.Say("not in the cache, and the mirror is not to be asked", "no está en la caché, y no se debe preguntar a la réplica"))
	// ErrNoAnswer says that a mirror was asked and did not give it.
	ErrNoAnswer = errors.New(locale.Say("the mirror does not answer", "la réplica no responde"))
)

// New prepares a mirror; it fetches nothing yet. Close it.
func New(o Options) (*Mirror, error) {
	if o.Keyring == "" {
		o.Keyring = DefaultKeyring
	}
	text, err := os.ReadFile(o.Keyring)
	if err != nil {
		return nil, fmt.Errorf(locale.Say("keys of Debian's archive: %w (install debian-archive-keyring, or name a file with --keyring)", "claves del archivo de Debian: %w (instale debian-archive-keyring, o nombre un archivo con --keyring)"), err)
	}
	keys, err := debian.ReadKeyring(text)
	if err != nil {
		return nil, fmt.Errorf("keys of Debian's archive: %s: %w", o.Keyring, err)
	}
	main, security := hostMirrors()
	if o.Main == "" {
		o.Main = main
	}
	if o.Security == "" {
		o.Security = security
	}
	m := &Mirror{keys: keys, users: map[string]*url.Userinfo{}, whole: map[string]bool{}}
	for _, a := range []*string{&o.Main, &o.Security} {
		if *a == "none" {
			continue
		}
		u, err := url.Parse(strings.TrimRight(*a, "/"))
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf(locale.Say("mirror %q: not an http or https address", "réplica %q: no es una dirección http o https"), userinfo.ReplaceAllString(*a, "//"))
		}
		who := u.User
		u.User = nil
		if *a = u.String(); who != nil {
			m.users[*a] = who
		}
	}
	if goNames[o.Architecture] == "" {
		return nil, fmt.Errorf("no images are made for the architecture %q", o.Architecture)
	}
	if o.Client == nil {
		o.Client = &http.Client{}
	}
	m.o = o
	if m.hold, err = take(o.Cache); err != nil {
		return nil, err
	}
	return m, nil
}

// userinfo is what stands before the host in what may not be an address at all.
var userinfo = regexp.MustCompile(`//[^/]*@`)

// Close leaves the cache.
func (m *Mirror) Close() error {
	if m.hold.file == nil {
		return nil
	}
	return m.hold.file.Close()
}

// CacheID names the cache; "" where it cannot be written. What a library build
// leaves in an engine carries it.
func (m *Mirror) CacheID() string { return m.hold.id }

// Alone says that no other program worked with this cache when this one began:
// what carries its name was left behind.
func (m *Mirror) Alone() bool { return m.hold.alone }

// Cache is the folder of the cache.
func (m *Mirror) Cache() string { return m.o.Cache }

// Name says where packages come from, for people.
func (m *Mirror) Name() string { return m.o.Main + " " + m.o.Suite }

// GoArchitecture is the architecture as images name it.
func (m *Mirror) GoArchitecture() string { return goNames[m.o.Architecture] }

// goNames are the architectures of Debian that images are made for.
var goNames = map[string]string{"amd64": "amd64", "arm64": "arm64", "armhf": "arm", "i386": "386", "ppc64el": "ppc64le", "riscv64": "riscv64", "s390x": "s390x"}

// DebianArchitecture is Debian's name of an architecture as images name it, or "".
func DebianArchitecture(name string) string {
	for d, g := range goNames {
		if g == name {
			return d
		}
	}
	return ""
}

// Snapshot is what a mirror offered at one moment.
type Snapshot struct {
	Index *debian.Index
	Date  time.Time // of the newest release file

	m       *Mirror
	archive map[*debian.Package]string
}

// Open reads the indexes of the suite with its updates and security updates.
func (m *Mirror) Open(ctx context.Context) (*Snapshot, error) {
	s := &Snapshot{Index: debian.NewIndex(), m: m, archive: map[*debian.Package]string{}}
	suites := [][2]string{{m.o.Main, m.o.Suite}, {m.o.Main, m.o.Suite + "-updates"}}
	if m.o.Security != "none" {
		suites = append(suites, [2]string{m.o.Security, m.o.Suite + "-security"})
	}
	for _, a := range suites {
		if err := m.suite(ctx, s, a[0], a[1]); err != nil {
			return nil, fmt.Errorf("%s %s: %w", a[0], a[1], err)
		}
	}
	return s, nil
}

// Locked gives a snapshot of exactly these packages, whatever the mirror's
// index says now. Their digests are what is trusted. It fetches them all.
func (m *Mirror) Locked(ctx context.Context, list []*debian.Package) (*Snapshot, error) {
	s := &Snapshot{Index: debian.NewIndex(), m: m, archive: map[*debian.Package]string{}}
	for _, known := range list {
		if err := known.Check(); err != nil {
			return nil, fmt.Errorf("locked package %s: %w", known.Name, err)
		}
		at, err := s.Get(ctx, known, nil)
		if err != nil {
			return nil, err
		}
		p, err := fromDeb(at, *known)
		if err != nil {
			return nil, err
		}
		s.Index.Add(p)
	}
	return s, nil
}

func fromDeb(at string, known debian.Package) (*debian.Package, error) {
	f, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, err := debian.OpenDeb(f)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return debian.FromDeb(known, d.Control)
}

func (m *Mirror) suite(ctx context.Context, s *Snapshot, archive, suite string) error {
	dist := archive + "/dists/" + suite
	release, err := m.release(ctx, dist+"/InRelease", suite)
	if err != nil {
		return err
	}
	if release.Date.After(s.Date) {
		s.Date = release.Date
	}
	folder := "main/binary-" + m.o.Architecture
	for _, name := range []string{folder + "/Packages.gz", folder + "/Packages.xz", folder + "/Packages"} {
		file, ok := release.Files[name]
		if !ok {
			continue
		}
		if file.Size > maxIndex {
			return fmt.Errorf("%s: larger than %d bytes", name, maxIndex)
		}
		at, err := m.blob(ctx, dist+"/"+path.Dir(name)+"/by-hash/SHA256/"+file.SHA256, file.SHA256, file.Size, nil)
		if err != nil && !errors.Is(err, ErrOffline) && ctx.Err() == nil {
			at, err = m.blob(ctx, dist+"/"+name, file.SHA256, file.Size, nil)
		}
		if err != nil {
			return err
		}
		return s.read(at, archive)
	}
	return fmt.Errorf("no index for %s", m.o.Architecture)
}

func (s *Snapshot) read(file, archive string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := inflate.NewReader(f)
	if err != nil {
		return err
	}
	defer plain.Close()
	return debian.ReadIndex(io.LimitReader(plain, maxPlain), s.m.o.Architecture, func(p *debian.Package) error {
		s.Index.Add(p)
		s.archive[p] = archive
		return nil
	})
}

// Get gives a package's .deb as a file of the cache. The digest was checked
// when it was fetched. got is told of bytes that arrive.
func (s *Snapshot) Get(ctx context.Context, p *debian.Package, got func(n int)) (string, error) {
	archive, ok := s.archive[p]
	if !ok {
		archive = s.m.o.Main
	}
	at, err := s.m.blob(ctx, archive+"/"+p.Filename, p.SHA256, p.Size, got)
	var status *statusError
	if !ok && s.m.o.Security != "none" && errors.As(err, &status) {
		// A locked package may be of either archive.
		at, err = s.m.blob(ctx, s.m.o.Security+"/"+p.Filename, p.SHA256, p.Size, got)
	}
	if err != nil {
		return "", fmt.Errorf("package %s %s: %w", p.Name, p.Version, err)
	}
	return at, nil
}

// Has says whether the cache has a package.
func (s *Snapshot) Has(p *debian.Package) bool {
	info, err := os.Stat(s.m.path(p.SHA256))
	return err == nil && info.Size() == p.Size
}

// release gives the release file of a suite. A fetched one is remembered by its
// address once its signature was seen, and no older one is taken after it: a
// signature says who wrote a file, not that it is the last one. Offline the
// remembered one is as good as when it was fetched: it may have expired since.
func (m *Mirror) release(ctx context.Context, address, suite string) (*debian.Release, error) {
	at := filepath.Join(m.o.Cache, "release", hex.EncodeToString(sum([]byte(address)))[:32])
	seen, err := m.seen(at, suite)
	if m.o.Offline {
		if errors.Is(err, os.ErrNotExist) {
			err = ErrOffline
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path.Base(address), err)
		}
		return seen, nil
	}
	var b bytes.Buffer
	if err := m.fetch(ctx, address, &b, maxRelease, nil); err != nil {
		return nil, err
	}
	r, err := m.read(b.Bytes(), suite, time.Now())
	if err != nil {
		return nil, err
	}
	// One that cannot be read any more, by other keys or damaged, is forgotten.
	if seen != nil && r.Date.Before(seen.Date) {
		return nil, fmt.Errorf(locale.Say("the mirror offers a release of %s, and %s was seen before: it lags behind, or somebody replays an old one; try later or another mirror (--mirror), or to go back on purpose remove %s",
			"la réplica ofrece una versión de %s, y antes se vio la de %s: va atrasada, o alguien repite una vieja; pruebe más tarde u otra réplica (--mirror), o para volver atrás a propósito elimine %s"),
			r.Date.Format(time.RFC1123), seen.Date.Format(time.RFC1123), at)
	}
	return r, write(at, func(w io.Writer) error { _, err := w.Write(b.Bytes()); return err })
}

// seen reads the remembered release as of the moment it was fetched.
func (m *Mirror) seen(at, suite string) (*debian.Release, error) {
	f, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRelease+1))
	if err != nil {
		return nil, err
	}
	return m.read(b, suite, info.ModTime())
}

func (m *Mirror) read(b []byte, suite string, now time.Time) (*debian.Release, error) {
	r, err := debian.ReadInRelease(b, m.keys, now)
	if err != nil {
		return nil, fmt.Errorf("read InRelease: %w", err)
	}
	if r.Codename != suite && r.Suite != suite {
		return nil, fmt.Errorf("the release is of %s", r.Codename)
	}
	return r, nil
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func (m *Mirror) path(digest string) string {
	digest = strings.ToLower(digest)
	return filepath.Join(m.o.Cache, "sha256", digest[:2], digest)
}

// blob gives the cache's file of a digest, fetching it when it is not there,
// or is not what its name says: a folder may come from another machine, or a
// machine may have lost its power while it was written.
func (m *Mirror) blob(ctx context.Context, address, digest string, size int64, got func(int)) (string, error) {
	at := m.path(digest)
	if info, err := os.Stat(at); err == nil && info.Size() == size {
		good, err := m.check(at, digest)
		if err != nil {
			return "", err
		}
		if good {
			return at, nil
		}
		if m.o.Offline {
			return "", fmt.Errorf(locale.Say("%s is damaged: fetch it again", "%s está dañado: descárguelo otra vez"), at)
		}
	}
	if m.o.Offline {
		return "", ErrOffline
	}
	var last error
	for range tries {
		last = write(at, func(w io.Writer) error {
			h := sha256.New()
			if err := m.fetch(ctx, address, io.MultiWriter(w, h), size, got); err != nil {
				return err
			}
			if have := hex.EncodeToString(h.Sum(nil)); have != strings.ToLower(digest) {
				return fmt.Errorf("%s: SHA256 is %s, should be %s", address, have, digest)
			}
			return nil
		})
		if last == nil || ctx.Err() != nil {
			break
		}
		var status *statusError
		if errors.As(last, &status) && status.code < 500 {
			break
		}
	}
	return at, last
}

// check tells whether a file of the cache has its digest; each is read once.
func (m *Mirror) check(at, digest string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.whole[at] {
		return true, nil
	}
	f, err := os.Open(at)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false, err
	}
	m.whole[at] = hex.EncodeToString(h.Sum(nil)) == strings.ToLower(digest)
	return m.whole[at], nil
}

type statusError struct {
	address string
	code    int
	text    string
}

func (e *statusError) Error() string   { return e.address + ": " + e.text }
func (e *statusError) Is(t error) bool { return t == ErrNoAnswer }

// fetch copies an address to w, at most limit bytes.
func (m *Mirror) fetch(ctx context.Context, address string, w io.Writer, limit int64, got func(int)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stall, func() { cancel(fmt.Errorf("no byte for %v", stall)) })
	defer watch.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "berth-library")
	for archive, who := range m.users {
		if strings.HasPrefix(address, archive+"/") {
			password, _ := who.Password()
			req.SetBasicAuth(who.Username(), password)
		}
	}
	resp, err := m.o.Client.Do(req)
	if err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return err // by who asked
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, errors.Join(err, context.Cause(ctx)))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &statusError{address, resp.StatusCode, resp.Status}
	}
	n, err := io.Copy(w, io.LimitReader(progress{resp.Body, func(n int) {
		watch.Reset(stall)
		if got != nil {
			got(n)
		}
	}}, limit+1))
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	if n > limit {
		return fmt.Errorf("%s: larger than %d bytes", address, limit)
	}
	return nil
}

type progress struct {
	io.Reader
	got func(int)
}

func (p progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.got(n)
	return n, err
}

// write makes a file whole or not at all.
func write(at string, fill func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(at), partPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err = fill(f); err != nil {
		_ = f.Close()
		return err
	}
	if err = f.Chmod(0o644); err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), at)
}
