// Package daemon tests how the daemon is started, configured and reached.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

const limit = 20 * time.Second

func start(t *testing.T, name string, files []*os.File, extra ...string) *kit.Engine {
	t.Helper()
	e, err := kit.StartWith(context.Background(), name, false, files, extra...)
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// freeAddress is one on the loopback that nobody listens on: each test has the
// network namespace for itself.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestPlainTCPIsRefusedUnlessAskedForByName(t *testing.T) {
	_, err := kit.Start(context.Background(), "plain", false, "-H", "tcp://"+freeAddress(t))
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err == nil || !strings.Contains(err.Error(), "tcp without TLS gives root") {
		t.Fatalf("started, or said another reason: %v", err)
	}
}

func TestPlainTCPServesNoWebPages(t *testing.T) {
	address := freeAddress(t)
	start(t, "guard", nil, "-H", "tcp://"+address, "--tls=false")
	for _, c := range []struct {
		name, host, origin string
		status             int
	}{
		{"a client", address, "", http.StatusOK},
		{"a client by name", "localhost:2375", "", http.StatusOK},
		{"a page whose name points here", "evil.example", "", http.StatusForbidden},
		{"a page of another origin", address, "http://evil.example", http.StatusForbidden},
		{"a page without an origin to name", address, "null", http.StatusForbidden},
		{"a page of the daemon's own", address, "http://" + address, http.StatusOK},
	} {
		req, err := http.NewRequest(http.MethodPost, "http://"+address+"/containers/prune", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, resp.StatusCode, body, c.status)
		}
	}
}

func TestTheSocketBelongsToItsGroup(t *testing.T) {
	e := start(t, "group", nil, "-G", "4242")
	var st syscall.Stat_t
	if err := syscall.Stat(e.Socket, &st); err != nil {
		t.Fatal(err)
	}
	if st.Gid != 4242 || st.Uid != 0 || st.Mode&0o777 != 0o660 {
		t.Fatalf("socket is %d:%d %o", st.Uid, st.Gid, st.Mode&0o777)
	}
}

func TestASocketIsTakenOverByItsDescriptor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "activated.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	start(t, "activated", []*os.File{f}, "-H", "fd://")
	_ = f.Close()
	api := kit.NewAPI(path)
	defer api.Close()
	var version struct{ Version string }
	if err := api.Call(context.Background(), http.MethodGet, "/version", nil, &version); err != nil || version.Version == "" {
		t.Fatal(err, version)
	}
}

// configured starts an engine with a configuration file of its own.
func configured(t *testing.T, name, text string) (*kit.Engine, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "daemon.json")
	write(t, file, text)
	return start(t, name, nil, "--config-file", file), file
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTheConfigurationFileIsReadAgainAtAHangup(t *testing.T) {
	e, file := configured(t, "reload", `{"labels": ["stage=one"], "registry-mirrors": ["https://one.example"]}`)
	info := func() string {
		var i struct {
			Labels         []string
			Debug          bool
			RegistryConfig struct{ Mirrors []string }
		}
		if err := e.API.Call(context.Background(), http.MethodGet, "/info", nil, &i); err != nil {
			return err.Error()
		}
		return fmt.Sprint(i.Labels, i.Debug, i.RegistryConfig.Mirrors)
	}
	if got := info(); got != "[stage=one] false [https://one.example]" {
		t.Fatal(got)
	}
	hangup := func(want string) {
		t.Helper()
		if err := syscall.Kill(e.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if err := kit.Until(limit, func() error {
			if got := info(); got != want {
				return fmt.Errorf("%s, want %s", got, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err, e.Log())
		}
	}
	write(t, file, `{"labels": ["stage=two", "x=y"], "debug": true, "mtu": 1400}`)
	hangup("[stage=two x=y] true []")
	if !strings.Contains(e.Log(), "needs_restart=mtu") {
		t.Error("nobody is told that mtu needs a restart", e.Log())
	}
	events, err := e.Docker(context.Background(), "events", "--since", "5m", "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "type=daemon", "--format", "{{.Action}} {{.Actor.Attributes.labels}}")
	if err != nil || events != `reload ["stage=two","x=y"]` {
		t.Error(err, events)
	}
	// A file that is wrong changes nothing, and the daemon goes on.
	write(t, file, `{"labels": ["stage=three"], "nonsense": 1}`)
	if err := syscall.Kill(e.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := kit.Until(limit, func() error {
		if !strings.Contains(e.Log(), "configuration not reloaded") {
			return errors.New("the wrong file is not told of")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := info(); got != "[stage=two x=y] true []" {
		t.Error(got)
	}
}

func TestAConfigurationThatContradictsIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ name, text, flag, want string }{
		{"unknown", `{"nonsense": true}`, "", "the following directives don't match any configuration option: nonsense"},
		{"both", `{"mtu": 1400}`, "--mtu=1300", "specified both as a flag and in the configuration file: mtu"},
		{"malformed", `{"mtu": }`, "", "unable to configure the daemon with file"},
		{"shape", `{"mtu": "large"}`, "", "mtu"},
		{"mirror", `{"registry-mirrors": ["nonsense"]}`, "", `invalid mirror: "nonsense"`},
		{"refused", `{"userns-remap": "default"}`, "", "user namespaces"},
	} {
		file := filepath.Join(dir, c.name)
		write(t, file, c.text)
		args := []string{"--config-file", file}
		if c.flag != "" {
			args = append(args, c.flag)
		}
		_, err := kit.Start(context.Background(), "wrong-"+c.name, false, args...)
		if errors.Is(err, kit.ErrMissing) {
			kit.Skip(t, "%v", err)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestTheDaemonOutlivesWhoReadsItsLog(t *testing.T) {
	dir := filepath.Join(kit.Root(), "unread")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log") // where kit sends the daemon's output
	if err := syscall.Mkfifo(log, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(log, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	e, file := configured(t, "unread", `{}`)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, file, `{"debug": true}`)
	if err := syscall.Kill(e.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := kit.Until(limit, func() error {
		var i struct{ Debug bool }
		if err := e.API.Call(context.Background(), http.MethodGet, "/info", nil, &i); err != nil || !i.Debug {
			return fmt.Errorf("not read again: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestProfilesAreServedOnlyWithDebug(t *testing.T) {
	for _, debug := range []bool{false, true} {
		e := start(t, fmt.Sprintf("profile-%t", debug), nil, fmt.Sprintf("--debug=%t", debug))
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.Socket)
		}}}
		res, err := client.Get("http://berth/debug/pprof/goroutine?debug=1")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if served := strings.HasPrefix(string(text), "goroutine profile:"); served != debug {
			t.Errorf("--debug=%t: %s: %.60s", debug, res.Status, text)
		}
	}
}
