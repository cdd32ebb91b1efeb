package mirror

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const packages = "Package: a\nVersion: 1\nArchitecture: amd64\nFilename: pool/a.deb\nSize: 3\nSHA256: %x\n"

// yesterday is when all is signed.
var yesterday = &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return time.Now().Add(-24 * time.Hour) }}

// archive is a mirror of one suite with its updates, in memory.
type archive struct {
	files map[string][]byte // by path
	key   *openpgp.Entity
	date  time.Time // of releases
	user  string    // "name:password" that a client must give
}

func (a *archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if name, password, _ := r.BasicAuth(); a.user != "" && a.user != name+":"+password {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	b, ok := a.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(b)
}

// release signs a release file of a suite for the index.
func (a *archive) release(t *testing.T, suite string, until time.Time) {
	t.Helper()
	index := fmt.Appendf(nil, packages, sum([]byte("deb")))
	a.files["/dists/"+suite+"/main/binary-amd64/Packages"] = index
	text := fmt.Sprintf("Suite: %s\nCodename: %s\nDate: %s\nValid-Until: %s\nSHA256:\n %x %d main/binary-amd64/Packages\n", suite, suite,
		a.date.UTC().Format(time.RFC1123), until.UTC().Format(time.RFC1123), sum(index), len(index))
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, a.key.PrivateKey, yesterday)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(text))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a.files["/dists/"+suite+"/InRelease"] = b.Bytes()
}

// world is an archive with a server and the options of who asks it.
func world(t *testing.T, until time.Time) (*archive, Options) {
	t.Helper()
	key, err := openpgp.NewEntity("archive", "", "a@example.org", yesterday)
	if err != nil {
		t.Fatal(err)
	}
	a := &archive{files: map[string][]byte{"/pool/a.deb": []byte("deb")}, key: key, date: time.Now()}
	a.release(t, "x", until)
	a.release(t, "x-updates", until)
	var ring bytes.Buffer
	if err := key.Serialize(&ring); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "keyring"), ring.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return a, Options{Main: server.URL, Security: "none", Suite: "x", Architecture: "amd64", Keyring: filepath.Join(dir, "keyring"), Cache: filepath.Join(dir, "cache")}
}

// open asks a mirror as a new program does, and gets package a.
func open(o Options) error {
	m, err := New(o)
	if err != nil {
		return err
	}
	defer m.Close()
	s, err := m.Open(context.Background())
	if err != nil {
		return err
	}
	at, err := s.Get(context.Background(), s.Index.Get("a"), nil)
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(at); err != nil || string(b) != "deb" {
		return fmt.Errorf("the package is %q, %v", b, err)
	}
	return nil
}

func TestWhatWasFetchedWorksWithoutANetwork(t *testing.T) {
	_, o := world(t, time.Now().Add(time.Hour))
	offline := o
	offline.Offline = true
	if err := open(offline); !errors.Is(err, ErrOffline) {
		t.Error("nothing was fetched:", err)
	}
	if err := open(o); err != nil {
		t.Fatal(err)
	}
	if err := open(offline); err != nil {
		t.Error(err)
	}
}

func TestAnExpiredReleaseIsRefusedWhereItIsFetchedAlone(t *testing.T) {
	until := time.Now().Add(-time.Hour)
	_, o := world(t, until)
	if err := open(o); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Fatal(err)
	}
	a, o := world(t, time.Now().Add(time.Hour))
	if err := open(o); err != nil {
		t.Fatal(err)
	}
	// As fetched two hours ago, one hour before it expired.
	for _, suite := range []string{"x", "x-updates"} {
		a.release(t, suite, until)
		name := filepath.Join(o.Cache, "release", hex.EncodeToString(sum([]byte(o.Main + "/dists/" + suite + "/InRelease")))[:32])
		if err := os.WriteFile(name, a.files["/dists/"+suite+"/InRelease"], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, until.Add(-time.Minute), until.Add(-time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	o.Offline = true
	if err := open(o); err != nil {
		t.Error(err)
	}
}

func TestABadReleaseDoesNotReplaceAGoodOne(t *testing.T) {
	a, o := world(t, time.Now().Add(time.Hour))
	if err := open(o); err != nil {
		t.Fatal(err)
	}
	a.files["/dists/x/InRelease"] = []byte("<html>Welcome to the hotel's network</html>")
	if err := open(o); err == nil {
		t.Fatal("it was taken for a release")
	}
	o.Offline = true
	if err := open(o); err != nil {
		t.Error(err)
	}
}

func TestADamagedFileOfTheCacheIsNotUsed(t *testing.T) {
	_, o := world(t, time.Now().Add(time.Hour))
	if err := open(o); err != nil {
		t.Fatal(err)
	}
	digest := fmt.Sprintf("%x", sum([]byte("deb")))
	at := filepath.Join(o.Cache, "sha256", digest[:2], digest)
	damage := func() {
		t.Helper()
		if err := os.WriteFile(at, []byte("BAD"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	offline := o
	offline.Offline = true
	if err := open(offline); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error("offline:", err)
	}
	if err := open(o); err != nil {
		t.Error(err)
	}
}

func TestAnOlderReleaseThanOneSeenBeforeIsRefused(t *testing.T) {
	until := time.Now().Add(time.Hour)
	a, o := world(t, until)
	if err := open(o); err != nil {
		t.Fatal(err)
	}
	a.date = a.date.Add(-time.Hour)
	a.release(t, "x-updates", until)
	for range 2 { // the refused one is not remembered
		err := open(o)
		if err == nil || !strings.Contains(err.Error(), "was seen before") || !strings.Contains(err.Error(), o.Cache) {
			t.Fatal(err)
		}
	}
	a.date = a.date.Add(2 * time.Hour)
	a.release(t, "x-updates", until)
	if err := open(o); err != nil {
		t.Error("a newer one:", err)
	}
}

func TestAReleaseOfAnotherSuiteIsNotRemembered(t *testing.T) {
	until := time.Now().Add(time.Hour)
	a, o := world(t, until)
	good := a.files["/dists/x-updates/InRelease"]
	a.date = a.date.Add(time.Minute)
	a.release(t, "y", until)
	a.files["/dists/x-updates/InRelease"] = a.files["/dists/y/InRelease"]
	if err := open(o); err == nil || !strings.Contains(err.Error(), "the release is of y") {
		t.Fatal(err)
	}
	a.files["/dists/x-updates/InRelease"] = good
	if err := open(o); err != nil {
		t.Error(err)
	}
}

func TestThePasswordOfAMirrorIsSentAndNotShown(t *testing.T) {
	a, o := world(t, time.Now().Add(time.Hour))
	a.user = "reader:pa:s@s"
	o.Main = strings.Replace(o.Main, "http://", "http://reader:pa%3As%40s@", 1)
	if err := open(o); err != nil {
		t.Fatal(err)
	}
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	said := []string{m.Name()}
	for _, spoil := range []func(){func() { delete(a.files, "/dists/x/InRelease") }, func() { o.Main = strings.Replace(o.Main, "127.0.0.1", "127.0.0.1:x", 1) }} {
		spoil()
		err := open(o)
		if err == nil {
			t.Fatal("it opened")
		}
		said = append(said, err.Error())
	}
	for _, text := range said {
		if strings.Contains(text, "pa:s") || strings.Contains(text, "pa%3A") || strings.Contains(text, "reader") {
			t.Error(text)
		}
	}
}

func TestWhatWasHalfFetchedIsRemovedOnceNobodyWorksWithTheCache(t *testing.T) {
	_, o := world(t, time.Now().Add(time.Hour))
	other, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(o.Cache, "sha256", "ab", partPrefix+"1")
	if err := os.MkdirAll(filepath.Dir(half), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(half, []byte("d"), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if m.Alone() || m.CacheID() != other.CacheID() || m.CacheID() == "" {
		t.Errorf("alone: %v, %q and %q", m.Alone(), m.CacheID(), other.CacheID())
	}
	if _, err := os.Stat(half); err != nil {
		t.Error("it was another's:", err)
	}
	_ = m.Close()
	_ = other.Close()
	last, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is still there:", err)
	}
	if !last.Alone() || last.CacheID() != other.CacheID() {
		t.Errorf("alone: %v, %q and %q", last.Alone(), last.CacheID(), other.CacheID())
	}
}
