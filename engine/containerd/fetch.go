package containerd

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/redact"
)

// answerLimit is how long a server may take to begin its answer.
const answerLimit = time.Minute

// ImportURL makes an image from the archive of files that o.Source, an address
// of http or https, names. Without a scheme http is meant, as Docker does.
func (l *Library) ImportURL(ctx context.Context, o image.ImportOptions, report func(image.Progress)) (string, error) {
	address := o.Source
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", fault.Invalidf("invalid source %q: %w", o.Source, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fault.Invalidf("invalid source %q: want http:// or https:// and a host", o.Source)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", fault.Invalidf("invalid source %q: %w", o.Source, err)
	}
	req.Header.Set("User-Agent", userAgent)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = answerLimit
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req) // at most ten redirects
	if err != nil {
		return "", fault.Unavailablef("import from %s", redact.URLs(fmt.Sprintf("%s: %v", u, err)))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fault.NotFoundf("failed to GET %s with status %s", redact.URLs(u.String()), resp.Status)
	}
	report(image.Progress{Status: "Downloading from " + redact.URLs(u.String())})
	if u.User != nil { // the image remembers its source, and travels
		bare := *u
		bare.User = nil
		o.Source = bare.String()
	}
	t := &meter{report: report, total: max(resp.ContentLength, 0)}
	id, err := l.Import(ctx, &counted{ReadCloser: resp.Body, tell: func(n int64) { t.at("Importing", n) }}, o)
	if err != nil {
		return "", fmt.Errorf("import from %s: %w", redact.URLs(u.String()), err)
	}
	return id, nil
}
