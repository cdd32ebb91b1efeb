package library

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// windowVar names the socket of the window for the tests inside the namespaces.
const windowVar = "BERTH_LIBRARY_TEST_WINDOW"

// maxKept bounds what the window keeps of one address, in bytes.
const maxKept = 64 << 20

// window is what the builds of the applications see of the world: it is a proxy
// to the mirror of Debian's packages, has the Go proxy below /go/, and answers
// anything else as the npm registry, whose clients replace a host, not a path.
// Its server is outside of the tests' namespaces; a socket in the file system
// leads to it.
type window struct {
	proxy http.Handler
	cache string // folder of what never changes at its address
}

var (
	debianHosts = []string{"deb.debian.org", "security.debian.org"}
	unchanging  = []string{".deb", ".tgz", ".zip", ".mod", ".info"}
)

// openWindow listens in dir until the program ends.
func openWindow(dir string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	at := filepath.Join(dir, "window")
	l, err := net.Listen("unix", at)
	if err != nil {
		return err
	}
	w := &window{cache: filepath.Join(cache, "berth", "window"), proxy: &httputil.ReverseProxy{Rewrite: registry}}
	go func() { _ = http.Serve(l, w) }()
	return os.Setenv(windowVar, at)
}

// registry leads what is asked of the window itself to one of the registries.
func registry(r *httputil.ProxyRequest) {
	if r.In.URL.Host != "" {
		return
	}
	u := r.Out.URL
	u.Scheme, u.Host = "https", "registry.npmjs.org"
	if rest, ok := strings.CutPrefix(u.Path, "/go/"); ok {
		u.Host, u.Path, u.RawPath = "proxy.golang.org", "/"+rest, ""
	}
	r.Out.Host = u.Host
}

func (w *window) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	inside := r.URL.Host == "" || slices.Contains(debianHosts, r.URL.Host)
	if !inside || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(out, "the tests do not lead to "+r.URL.String(), http.StatusForbidden)
		return
	}
	kept := w.kept(r)
	if f, err := os.Open(kept); err == nil {
		defer f.Close()
		_, _ = io.Copy(out, f)
		return
	}
	if kept == "" {
		w.proxy.ServeHTTP(out, r)
		return
	}
	k := &keeper{ResponseWriter: out}
	w.proxy.ServeHTTP(k, r)
	if k.code == http.StatusOK && len(k.body) <= maxKept {
		_ = os.MkdirAll(w.cache, 0o755)
		part := fmt.Sprintf("%s.%d", kept, os.Getpid())
		if os.WriteFile(part, k.body, 0o644) == nil {
			_ = os.Rename(part, kept)
		}
	}
}

// kept is where the answer is kept, or "".
func (w *window) kept(r *http.Request) string {
	for _, ext := range unchanging {
		if path.Ext(r.URL.Path) == ext && r.Method == http.MethodGet && r.Header.Get("Range") == "" {
			sum := sha256.Sum256([]byte(r.URL.Host + r.URL.EscapedPath()))
			return filepath.Join(w.cache, hex.EncodeToString(sum[:]))
		}
	}
	return ""
}

// keeper remembers an answer that it passes on.
type keeper struct {
	http.ResponseWriter
	code int
	body []byte
}

func (k *keeper) WriteHeader(code int) { k.code = code; k.ResponseWriter.WriteHeader(code) }

func (k *keeper) Write(p []byte) (int, error) {
	if len(k.body) <= maxKept {
		k.body = append(k.body, p...)
	}
	return k.ResponseWriter.Write(p)
}

// lead listens in the tests' network and leads connections to the window. It
// gives its port.
func lead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { join(ctx, c) })
		}
	})
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		running.Wait()
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// join copies both ways until either side ends, or the tests.
func join(ctx context.Context, c net.Conn) {
	defer c.Close()
	to, err := new(net.Dialer).DialContext(ctx, "unix", os.Getenv(windowVar))
	if err != nil {
		return
	}
	defer to.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{c, to}, {to, c}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			ended <- struct{}{}
		}()
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
}
