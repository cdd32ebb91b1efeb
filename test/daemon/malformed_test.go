package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/test/kit"
)

// How many requests of nonsense the daemon gets, and how long one that is
// answered by a stream is read.
const (
	nonsense   = 3000
	streamTime = 300 * time.Millisecond
)

// operations of the API; X stands for an id or a name.
var operations = strings.Fields(`
	GET/containers/json POST/containers/create POST/containers/prune GET/containers/X/json GET/containers/X/top GET/containers/X/logs GET/containers/X/changes
	GET/containers/X/export GET/containers/X/stats POST/containers/X/resize POST/containers/X/start POST/containers/X/stop POST/containers/X/restart
	POST/containers/X/kill POST/containers/X/update POST/containers/X/rename POST/containers/X/pause POST/containers/X/unpause POST/containers/X/attach
	GET/containers/X/attach/ws POST/containers/X/wait DELETE/containers/X HEAD/containers/X/archive GET/containers/X/archive PUT/containers/X/archive
	POST/containers/X/exec POST/exec/X/start POST/exec/X/resize GET/exec/X/json POST/commit GET/images/json GET/images/X/json GET/images/X/history
	GET/images/X/get GET/images/get POST/images/load POST/images/X/tag DELETE/images/X POST/images/prune GET/images/X/attestations GET/networks
	POST/networks/create POST/networks/prune GET/networks/X DELETE/networks/X POST/networks/X/connect POST/networks/X/disconnect GET/volumes POST/volumes/create
	POST/volumes/prune GET/volumes/X PUT/volumes/X DELETE/volumes/X GET/events GET/system/df GET/info GET/version GET/_ping POST/auth GET/plugins
	GET/plugins/X/json POST/plugins/pull GET/services POST/services/create GET/tasks/X GET/swarm POST/swarm/join POST/build POST/build/prune POST/session`)

var words = []string{
	"", "box", "nosuch", "..", "%2e%2e%2f%2e%2e", "a%00b", "a%0ab", "%ff%fe", "busybox:test", "sha256:", strings.Repeat("a", 5000), "-1", "0", "99999999999999999999",
	"true", "null", "{}", "[]", `{"a":1}`, `{"a":["b"]}`, `{"label":{"x":true}}`, "/", "//", "é", "💥", "1e309", "NaN", "bridge", "host", `"`, "'", "$(id)", "SIGKILL", "linux/amd64",
}

var keys = []string{
	"all", "limit", "size", "filters", "since", "until", "name", "platform", "path", "h", "w", "t", "signal", "condition", "force", "v", "link", "tail", "stdout", "stderr",
	"stream", "logs", "repo", "tag", "container", "changes", "type", "one-shot", "ps_args", "scope", "manifests", "names", "noOverwriteDirNonDir", "copyUIDGID", "detachKeys", "quiet", "term",
}

var fields = []string{
	"Image", "Cmd", "Env", "HostConfig", "Name", "Driver", "IPAM", "Labels", "Container", "EndpointConfig", "Memory", "Binds", "Mounts", "PortBindings", "RestartPolicy", "NetworkMode",
	"Ulimits", "Devices", "Tty", "Detach", "ConsoleSize", "AttachStdin", "Options", "DriverOpts", "ExposedPorts", "Healthcheck", "Test", "Interval", "Config", "Subnet", "username", "LogConfig", "Type",
	"NanoCpus", "ShmSize", "Tmpfs", "Volumes", "NetworkingConfig", "EndpointsConfig", "SecurityOpt", "Sysctls", "CapAdd", "User", "WorkingDir", "Hostname", "StopTimeout", "PidsLimit", "Runtime",
}

// value is some JSON, of whatever shape.
func value(r *rand.Rand, depth int) string {
	switch n := r.IntN(10); {
	case n < 3 && depth < 4:
		var parts []string
		for range r.IntN(5) {
			parts = append(parts, fmt.Sprintf("%q:%s", fields[r.IntN(len(fields))], value(r, depth+1)))
		}
		return "{" + strings.Join(parts, ",") + "}"
	case n < 5 && depth < 4:
		var parts []string
		for range r.IntN(4) {
			parts = append(parts, value(r, depth+1))
		}
		return "[" + strings.Join(parts, ",") + "]"
	case n < 6:
		return []string{"null", "true", "false", "-1", "0", "1e400", "9223372036854775808", "0.5"}[r.IntN(8)]
	}
	return fmt.Sprintf("%q", words[r.IntN(len(words))])
}

func body(r *rand.Rand) []byte {
	switch r.IntN(8) {
	case 0:
		return nil
	case 1:
		return []byte(words[r.IntN(len(words))])
	case 2:
		b := make([]byte, r.IntN(600))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	case 3:
		text := value(r, 0)
		return []byte(text[:r.IntN(len(text)+1)])
	case 4:
		return []byte(`{"Image":"busybox:test",` + strings.TrimPrefix(value(r, 0), "{"))
	}
	return []byte(value(r, 0))
}

// request gives one of nonsense; the same number gives the same request.
func request(ctx context.Context, n int) (*http.Request, error) {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	method, path, _ := strings.Cut(operations[r.IntN(len(operations))], "/")
	for strings.Contains(path, "X") {
		path = strings.Replace(path, "X", url.PathEscape(words[r.IntN(len(words))]), 1)
	}
	query := url.Values{}
	for range r.IntN(4) {
		query.Add(keys[r.IntN(len(keys))], words[r.IntN(len(words))])
	}
	version := []string{"", "/v1.24", "/v1.41", "/v1.56", "/v1.44", "/v1.x", "/v99.1"}[r.IntN(7)]
	req, err := http.NewRequestWithContext(ctx, method, "http://d"+version+"/"+path+"?"+query.Encode(), bytes.NewReader(body(r)))
	if err != nil {
		return nil, err
	}
	if kind := []string{"application/json", "application/json", "", "text/plain", "application/x-tar", "a/b; c="}[r.IntN(6)]; kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	switch r.IntN(8) {
	case 0:
		req.Header.Set("X-Registry-Auth", words[r.IntN(len(words))])
	case 1:
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "tcp")
	}
	return req, nil
}

func TestNonsenseIsRefusedAndNothingFallsOver(t *testing.T) {
	ctx := context.Background()
	e := start(t, "nonsense", nil)
	if err := e.LoadImages(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Docker(ctx, "create", "--name", "box", "busybox:test", "true"); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.Socket)
		},
		MaxIdleConnsPerHost: 8,
	}}
	defer client.CloseIdleConnections()
	numbers := make(chan int)
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for n := range numbers {
				try(t, client, n)
			}
		})
	}
	for n := range nonsense {
		numbers <- n
	}
	close(numbers)
	work.Wait()
	if err := e.Ping(ctx); err != nil {
		t.Error(err)
	}
	if log := e.Log(); strings.Contains(log, "panic") {
		t.Error(log)
	}
	// The engine still does its work; nonsense may have taken its images away.
	if err := e.LoadImages(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := e.Docker(ctx, "run", "--rm", "busybox:test", "echo", "well"); err != nil || out != "well" {
		t.Error(err, out)
	}
}

// try sends one request. 501 and 503 name what is not supported, as swarms.
func try(t *testing.T, client *http.Client, n int) {
	ctx, cancel := context.WithTimeout(context.Background(), kit.Patience)
	defer cancel()
	req, err := request(ctx, n)
	if err != nil {
		return // no such request can be sent
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() == nil && !strings.Contains(err.Error(), "malformed HTTP") {
			t.Errorf("request %d: %s %.200s: %v", n, req.Method, req.URL, err)
		}
		return
	}
	// A stream has no end: what it says first is enough.
	end := time.AfterFunc(streamTime, func() { _ = resp.Body.Close() })
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	end.Stop()
	_ = resp.Body.Close()
	if strings.Contains(string(text), "registry-1.docker.io") {
		return // it was sense: the Hub is asked, and cannot be reached from here
	}
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented && resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("request %d: %s %.300s: %d %s", n, req.Method, req.URL, resp.StatusCode, text)
	}
}
