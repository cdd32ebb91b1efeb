package kit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Version is the API version the raw client asks for: the newest that both
// the peer and Berth speak.
const Version = "v1.41"

// Patience is how long a test waits for one answer on a busy machine.
const Patience = time.Minute

// Timeout is a context of one piece of work that is given all of Patience.
func Timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), Stretch(Patience))
}

// API is a small client of the Docker API over a unix socket.
type API struct{ http *http.Client }

// NewAPI returns a client of the socket.
func NewAPI(socket string) *API {
	return &API{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 64,
	}}}
}

// Close drops idle connections.
func (a *API) Close() { a.http.CloseIdleConnections() }

// Do sends a request; the path has no version, and starts with a slash. A
// path that starts with "//" is sent without a version.
func (a *API) Do(ctx context.Context, method, path, kind string, body io.Reader) (*http.Response, error) {
	url := "http://d/" + Version + path
	if strings.HasPrefix(path, "//") {
		url = "http://d" + path[1:]
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	return a.http.Do(req)
}

// Call sends in as JSON and decodes the answer into out; either may be nil.
func (a *API) Call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	kind := ""
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body, kind = bytes.NewReader(b), "application/json"
	}
	resp, err := a.Do(ctx, method, path, kind, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	if out == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, out)
}

// Load sends a docker archive to the engine.
func (a *API) Load(ctx context.Context, name string, config Config, files []File) error {
	var b bytes.Buffer
	if err := Archive(&b, name, config, files); err != nil {
		return err
	}
	resp, err := a.Do(ctx, http.MethodPost, "/images/load?quiet=1", "application/x-tar", &b)
	if err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	if resp.StatusCode != http.StatusOK || bytes.Contains(text, []byte(`"error"`)) {
		return fmt.Errorf("load %s: %s: %s", name, resp.Status, text)
	}
	return nil
}

// Until calls try until it succeeds or the limit passes; it returns the last
// error. It is the one place of the tests that polls.
func Until(limit time.Duration, try func() error) error {
	limit = Stretch(limit)
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-deadline.C:
			return fmt.Errorf("after %v: %w", limit, err)
		case <-tick.C:
		}
	}
}
