package containerd_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/engine/containerd"
)

func TestARegistryWithAPasswordWantsIt(t *testing.T) {
	l := library(t)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("me:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := registry(t, "auth:\n  htpasswd: {realm: test, path: "+file+"}\n")
	ref := address + "/locked:1"
	load(t, l, ref, nil, layer(t, entry{name: "a", body: "x"}))
	good, bad := &image.Auth{Username: "me", Password: "secret"}, &image.Auth{Username: "me", Password: "wrong"}

	err = l.Push(t.Context(), ref, image.PushOptions{}, quiet)
	if err == nil || err.Error() != "no basic auth credentials" {
		t.Error("push without:", err)
	}
	if err := l.Push(t.Context(), ref, image.PushOptions{Auth: bad}, quiet); err == nil {
		t.Error("push with a wrong password succeeds")
	} else {
		t.Log(err)
	}
	if err := l.Push(t.Context(), ref, image.PushOptions{Auth: good}, quiet); err != nil {
		t.Fatal(err)
	}
	err = l.Pull(t.Context(), ref, image.PullOptions{}, quiet)
	if err == nil || !strings.HasSuffix(err.Error(), "no basic auth credentials") {
		t.Error("pull without:", err)
	}
	if err := l.Pull(t.Context(), ref, image.PullOptions{Auth: good}, quiet); err != nil {
		t.Error(err)
	}
	if err := l.Pull(t.Context(), address+"/locked", image.PullOptions{Auth: good, All: true}, quiet); err != nil {
		t.Error("all tags:", err)
	}
	good.ServerAddress, bad.ServerAddress = address, address
	if status, _, err := l.Login(t.Context(), *good); err != nil || status != "Login Succeeded" {
		t.Error(status, err)
	}
	_, _, err = l.Login(t.Context(), *bad)
	if err == nil || !strings.HasSuffix(err.Error(), "unauthorized: incorrect username or password") {
		t.Error("login with a wrong password:", err)
	}
	if err != nil && strings.Contains(err.Error(), "wrong") {
		t.Error("the password is in the error")
	}
}

// remote is a registry of one image, with faults that a test asks for.
type remote struct {
	*httptest.Server
	blobs    map[string][]byte
	manifest []byte
	layer    string
	realm    string // asks for a bearer token where set
	cut      atomic.Int64
	hold     chan struct{} // where set, a cut answer waits instead of breaking
	mu       sync.Mutex
	ranges   []string
	seen     []string // Authorization headers
}

func newRemote(t *testing.T, body []byte, secure bool) *remote {
	t.Helper()
	r := &remote{blobs: map[string][]byte{}}
	put := func(b []byte) (string, int) {
		sum := fmt.Sprintf("sha256:%x", sha256.Sum256(b))
		r.blobs[sum] = b
		return sum, len(b)
	}
	var size int
	r.layer, size = put(body)
	config, _ := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{r.layer}}})
	configSum, configSize := put(config)
	r.manifest, _ = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": configSum, "size": configSize},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": r.layer, "size": size}},
	})
	put(r.manifest)
	if secure {
		r.Server = httptest.NewTLSServer(r)
	} else {
		r.Server = httptest.NewServer(r)
	}
	t.Cleanup(r.Close)
	return r
}

func (r *remote) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL, "https://"), "http://")
}

func (r *remote) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, q.Header.Get("Authorization"))
	r.mu.Unlock()
	if r.realm != "" && q.Header.Get("Authorization") != "Bearer good" {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q,service=\"x\"", r.realm))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if strings.Contains(q.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(r.manifest)))
		w.Header().Set("Content-Length", fmt.Sprint(len(r.manifest)))
		if q.Method == http.MethodGet {
			_, _ = w.Write(r.manifest)
		}
		return
	}
	_, sum, _ := strings.Cut(q.URL.Path, "/blobs/")
	body, ok := r.blobs[sum]
	if !ok {
		http.NotFound(w, q)
		return
	}
	start := 0
	if v := q.Header.Get("Range"); v != "" {
		_, _ = fmt.Sscanf(v, "bytes=%d-", &start)
	}
	if sum == r.layer {
		r.mu.Lock()
		r.ranges = append(r.ranges, fmt.Sprint(start))
		r.mu.Unlock()
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)-start))
	if start > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body)))
		w.WriteHeader(http.StatusPartialContent)
	}
	rest := body[start:]
	if n := int(r.cut.Load()); sum == r.layer && n > 0 && n < len(rest) {
		_, _ = w.Write(rest[:n])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		if r.hold != nil {
			select {
			case <-r.hold:
			case <-q.Context().Done():
			}
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(rest)
}

func TestAnInterruptedPullGoesOnWhereItStopped(t *testing.T) {
	l := library(t)
	r := newRemote(t, layer(t, entry{name: "big", body: strings.Repeat("0123456789", 500_000)}), false)
	r.cut.Store(2 << 20)
	if err := l.Pull(t.Context(), r.host()+"/big:1", image.PullOptions{}, quiet); err != nil {
		t.Fatal(err) // connections break, the pull goes on
	}
	if len(r.ranges) < 2 || r.ranges[0] != "0" || r.ranges[1] == "0" {
		t.Errorf("asked from %v", r.ranges)
	}
	i, err := l.Get(t.Context(), r.host()+"/big:1", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, l, i.ID, "big"); len(got) != 5_000_000 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestACancelledPullLeavesItsBytesToTheNext(t *testing.T) {
	l := library(t)
	r := newRemote(t, layer(t, entry{name: "big", body: strings.Repeat("9876543210", 500_000)}), false)
	r.hold = make(chan struct{})
	t.Cleanup(func() { close(r.hold) })
	r.cut.Store(2 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	err := l.Pull(ctx, r.host()+"/big:1", image.PullOptions{}, func(p image.Progress) {
		if p.Status == "Downloading" && p.Current > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.cut.Store(0)
	if err := l.Pull(t.Context(), r.host()+"/big:1", image.PullOptions{}, quiet); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := r.ranges[len(r.ranges)-1]; last == "0" {
		t.Errorf("asked from %v", r.ranges)
	}
}

func TestWrongContentIsRefusedAndLeavesNothing(t *testing.T) {
	l := library(t)
	before := census(t)
	r := newRemote(t, layer(t, entry{name: "a", body: "right"}), false)
	r.blobs[r.layer] = layer(t, entry{name: "a", body: "wrong"})
	err := l.Pull(t.Context(), r.host()+"/bad:1", image.PullOptions{}, quiet)
	if err == nil || !strings.Contains(err.Error(), "filesystem layer verification failed for digest "+r.layer) {
		t.Error(err)
	}
	unchanged(t, l, before)
}

func TestCredentialsGoOnlyToWhomTheyWereGivenFor(t *testing.T) {
	l := library(t)
	var stolen atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		if q.Header.Get("Authorization") != "" || strings.Contains(string(b), "secret") {
			stolen.Add(1)
		}
		_, _ = io.WriteString(w, `{"token":"good"}`)
	}))
	t.Cleanup(thief.Close)
	auth := &image.Auth{Username: "me", Password: "secret"}
	u, err := url.Parse(thief.URL)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := "http://localhost:" + u.Port() + "/token" // another name than 127.0.0.1

	t.Run("a token service elsewhere", func(t *testing.T) {
		r := newRemote(t, layer(t, entry{name: "a"}), false)
		r.realm = elsewhere
		if err := l.Pull(t.Context(), r.host()+"/x:1", image.PullOptions{Auth: auth}, quiet); err == nil || !strings.Contains(err.Error(), "not of the same domain: refused") {
			t.Error(err)
		}
	})
	t.Run("a token service elsewhere without credentials", func(t *testing.T) {
		r := newRemote(t, layer(t, entry{name: "a"}), false)
		r.realm = elsewhere
		if err := l.Pull(t.Context(), r.host()+"/x:1", image.PullOptions{}, quiet); err != nil {
			t.Error(err)
		}
	})
	t.Run("a redirect of the token service", func(t *testing.T) {
		hop := httptest.NewServer(http.RedirectHandler(elsewhere, http.StatusTemporaryRedirect))
		t.Cleanup(hop.Close)
		r := newRemote(t, layer(t, entry{name: "a"}), false)
		r.realm = hop.URL + "/token"
		if err := l.Pull(t.Context(), r.host()+"/x:1", image.PullOptions{Auth: auth}, quiet); err == nil {
			t.Error("it was followed")
		}
	})
	t.Run("a mirror", func(t *testing.T) {
		r := newRemote(t, layer(t, entry{name: "a"}), false)
		r.realm = r.URL + "/token"
		m := library(t, func(o *containerd.LibraryOptions) { o.Registry.Mirrors = []string{"registry.invalid=" + r.URL} })
		_ = m.Pull(t.Context(), "registry.invalid/x:1", image.PullOptions{Auth: auth}, quiet)
		for _, h := range r.seen {
			if strings.Contains(h, "Basic") {
				t.Error("the mirror was shown the password")
			}
		}
	})
	if stolen.Load() > 0 {
		t.Error("credentials went elsewhere")
	}
}

func TestMirrorsAreAskedFirst(t *testing.T) {
	r := newRemote(t, layer(t, entry{name: "a", body: "mirrored"}), false)
	l := library(t, func(o *containerd.LibraryOptions) {
		o.Registry.Mirrors = []string{r.URL, "registry.invalid=" + r.URL}
	})
	for _, ref := range []string{"anything:1", "registry.invalid/team/x:1"} {
		if err := l.Pull(t.Context(), ref, image.PullOptions{}, quiet); err != nil {
			t.Error(err)
		}
		if _, err := l.Get(t.Context(), ref, "", false); err != nil {
			t.Error(err)
		}
	}
	if _, err := containerd.NewLibrary(t.Context(), containerd.LibraryOptions{Engine: world.engine, Registry: containerd.RegistryOptions{Mirrors: []string{"ftp://x"}}}); err == nil {
		t.Error("a mirror without http passes")
	}
}

func TestTLSIsVerifiedUnlessTheRegistryIsSaidToBeInsecure(t *testing.T) {
	r := newRemote(t, layer(t, entry{name: "a"}), true)
	target, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	// A name that is not loopback's own; /etc/hosts of the tests has it.
	_, port, _ := strings.Cut(target.Host, ":")
	ref := "secure.test:" + port + "/x:1"
	l := library(t)
	if err := l.Pull(t.Context(), ref, image.PullOptions{}, quiet); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Error("unverified:", err)
	}
	loose := library(t, func(o *containerd.LibraryOptions) { o.Registry.Insecure = []string{"secure.test:" + port} })
	if err := loose.Pull(t.Context(), ref, image.PullOptions{}, quiet); err != nil {
		t.Error("insecure:", err)
	}
}
