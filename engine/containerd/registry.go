package containerd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/net/publicsuffix"
	"golang.org/x/sync/semaphore"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/redact"
)

// Limits of what is asked of registries.
const (
	maxTransports = 64                     // connection pools kept
	lookupLimit   = 2 * time.Second        // of a name, where a network of insecure registries is given
	userAgent     = "berth"                // sent to every registry
	hubDomain     = "docker.io"            // as references name it
	hubRegistry   = "registry-1.docker.io" // who serves it
	hubIndex      = "index.docker.io"      // whom clients name for it
)

// RegistryOptions say how registries are reached. The zero value works.
type RegistryOptions struct {
	Mirrors   []string // "https://mirror" for the Hub, "registry=https://mirror" for any other
	Insecure  []string // hosts or networks spoken to without verified TLS; loopback always is
	CertDirs  []string // folders with <registry>/{*.crt,*.cert,*.key}
	Downloads int      // layers fetched at a time; 0: 3
}

// registries reaches registries with what one daemon knows of them.
type registries struct {
	mirrors  map[string][]*url.URL
	hosts    []string
	networks []netip.Prefix
	certs    []string
	// downloads bounds the layers that are fetched at a time.
	downloads *semaphore.Weighted

	mu         sync.Mutex
	transports map[string]http.RoundTripper
}

func newRegistries(o RegistryOptions) (*registries, error) {
	if o.Downloads <= 0 {
		o.Downloads = defaultDownloads
	}
	r := &registries{
		downloads: semaphore.NewWeighted(int64(o.Downloads)),
		mirrors:   map[string][]*url.URL{}, certs: o.CertDirs, transports: map[string]http.RoundTripper{},
		networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	}
	for _, text := range o.Mirrors {
		domain, address := hubDomain, text
		if d, a, ok := strings.Cut(text, "="); ok && !strings.Contains(d, "/") {
			domain, address = d, a
		}
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("invalid mirror: %q: want https://host or registry=https://host", redact.URLs(text))
		}
		r.mirrors[domain] = append(r.mirrors[domain], u)
	}
	for _, text := range o.Insecure {
		if p, err := netip.ParsePrefix(text); err == nil {
			r.networks = append(r.networks, p)
			continue
		}
		text = strings.TrimPrefix(strings.TrimPrefix(text, "https://"), "http://")
		if text == "" || strings.ContainsAny(text, "/?#@ ") {
			return nil, fmt.Errorf("insecure registry %q is not valid: want host, host:port or a network", text)
		}
		r.hosts = append(r.hosts, text)
	}
	return r, nil
}

// insecure tells whether a host may be spoken to without verified TLS.
func (r *registries) insecure(ctx context.Context, host string) bool {
	if slices.Contains(r.hosts, host) {
		return true
	}
	name := (&url.URL{Host: host}).Hostname()
	if name == "localhost" {
		return true
	}
	addresses := []netip.Addr{}
	if a, err := netip.ParseAddr(name); err == nil {
		addresses = append(addresses, a)
	} else if len(r.networks) > 2 {
		ctx, cancel := context.WithTimeout(ctx, lookupLimit)
		defer cancel()
		addresses, _ = net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	}
	return slices.ContainsFunc(addresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(r.networks, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
	})
}

// transport gives the connection pool of a host.
func (r *registries) transport(host string, insecure bool) (http.RoundTripper, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := fmt.Sprint(host, insecure)
	if t := r.transports[key]; t != nil {
		return t, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}
	if err := r.trust(conf, host); err != nil {
		return nil, err
	}
	pool := docker.DefaultHTTPTransport(conf)
	pool.ForceAttemptHTTP2 = true
	var t http.RoundTripper = pool
	if insecure {
		t = docker.NewHTTPFallback(pool)
	}
	if len(r.transports) >= maxTransports {
		clear(r.transports)
	}
	r.transports[key] = t
	return t, nil
}

// trust adds the authorities and client certificates kept for a host.
func (r *registries) trust(conf *tls.Config, host string) error {
	for _, dir := range r.certs {
		dir = filepath.Join(dir, host)
		authorities, _ := filepath.Glob(filepath.Join(dir, "*.crt"))
		for _, file := range authorities {
			pem, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if conf.RootCAs == nil {
				if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
					conf.RootCAs = x509.NewCertPool()
				}
			}
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s holds no certificate", file)
			}
		}
		pairs, _ := filepath.Glob(filepath.Join(dir, "*.cert"))
		for _, file := range pairs {
			pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".cert")+".key")
			if err != nil {
				return fmt.Errorf("client certificate of %s: %w", host, err)
			}
			conf.Certificates = append(conf.Certificates, pair)
		}
	}
	return nil
}

// endpoint is one host that serves a domain.
func (r *registries) endpoint(ctx context.Context, domain, scheme, host string, a *image.Auth) (docker.RegistryHost, error) {
	loose := scheme != "https" || r.insecure(ctx, domain)
	t, err := r.transport(host, loose)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	return docker.RegistryHost{
		Client: &http.Client{Transport: t}, Authorizer: r.authorizer(t, host, loose, a, nil), Host: host, Scheme: scheme, Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}, nil
}

// resolver speaks with the registry of a domain, its mirrors first where reading.
func (r *registries) resolver(ctx context.Context, a *image.Auth, tracker docker.StatusTracker) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Tracker: tracker, Headers: http.Header{"User-Agent": {userAgent}},
		Hosts: func(domain string) ([]docker.RegistryHost, error) { return r.places(ctx, domain, a) },
	})
}

// places lists who serves a domain, its mirrors first.
func (r *registries) places(ctx context.Context, domain string, a *image.Auth) ([]docker.RegistryHost, error) {
	var hosts []docker.RegistryHost
	for _, m := range r.mirrors[domain] {
		// What a person gave for the registry is not shown to its mirrors.
		h, err := r.endpoint(ctx, m.Host, m.Scheme, m.Host, nil)
		if err != nil {
			return nil, err
		}
		h.Path = strings.TrimSuffix(m.Path, "/") + "/v2"
		hosts = append(hosts, h)
	}
	h, err := r.endpoint(ctx, domain, "https", registryHost(domain), a)
	if err != nil {
		return nil, err
	}
	h.Capabilities |= docker.HostCapabilityPush
	return append(hosts, h), nil
}

// registryHost is the host that serves a domain of references.
func registryHost(domain string) string {
	switch domain {
	case hubDomain, hubIndex:
		return hubRegistry
	}
	return domain
}

// authorizer answers a host's challenges with what was given for that host.
func (r *registries) authorizer(t http.RoundTripper, host string, loose bool, a *image.Auth, refresh docker.OnFetchRefreshToken) docker.Authorizer {
	if a != nil && a.RegistryToken != "" {
		return fixedToken{host: host, token: a.RegistryToken}
	}
	opts := []docker.AuthorizerOpt{
		docker.WithAuthClient(&http.Client{Transport: guard{next: t, host: host, loose: loose}}),
		docker.WithAuthHeader(http.Header{"User-Agent": {userAgent}}),
		docker.WithAuthCreds(func(asker string) (string, string, error) {
			switch {
			case a == nil || asker != host:
				return "", "", nil
			case a.IdentityToken != "":
				return "", a.IdentityToken, nil
			}
			return a.Username, a.Password, nil
		}),
	}
	if refresh != nil {
		opts = append(opts, docker.WithFetchRefreshToken(refresh))
	}
	return docker.NewDockerAuthorizer(opts...)
}

// fixedToken sends a token that a client got by itself.
type fixedToken struct{ host, token string }

func (f fixedToken) Authorize(_ context.Context, r *http.Request) error {
	if r.URL.Host == f.host {
		r.Header.Set("Authorization", "Bearer "+f.token)
	}
	return nil
}

func (f fixedToken) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("%w: the token was refused", docker.ErrInvalidAuthorization)
}

// guard keeps what was given for a registry from token services elsewhere: a
// challenge, or a redirect, may name any address.
type guard struct {
	next  http.RoundTripper
	host  string
	loose bool // plain HTTP is accepted
}

func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	secret := r.Method == http.MethodPost || r.Header.Get("Authorization") != ""
	if secret && !g.loose && r.URL.Scheme != "https" {
		return nil, fmt.Errorf("registry %s asks for credentials over plain HTTP at %s: refused", g.host, r.URL.Host)
	}
	if secret && !related(g.host, r.URL.Host) {
		return nil, fmt.Errorf("registry %s asks for credentials at %s, which is not of the same domain: refused", g.host, r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

// related tells whether two hosts have one owner: the same name, or names
// under the same registrable domain.
func related(a, b string) bool {
	a, b = strings.ToLower((&url.URL{Host: a}).Hostname()), strings.ToLower((&url.URL{Host: b}).Hostname())
	if a == b {
		return true
	}
	if net.ParseIP(a) != nil || net.ParseIP(b) != nil {
		return false
	}
	da, errA := publicsuffix.EffectiveTLDPlusOne(a)
	db, errB := publicsuffix.EffectiveTLDPlusOne(b)
	return errA == nil && errB == nil && da == db
}

// remoteError words a registry's refusal as Docker does. What is no refusal
// (the network, a registry's own failure) stays what it is.
func remoteError(named reference.Named, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var structured *fault.Error
	if errors.As(err, &structured) {
		return err
	}
	said := registrySays(err)
	var status remoteerrors.ErrUnexpectedStatus
	code := 0
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	name := reference.FamiliarName(named)
	switch {
	case strings.Contains(err.Error(), "no basic auth credentials"):
		return &fault.Error{Class: fault.ErrUnauthenticated, Msg: fmt.Sprintf("Head %q: no basic auth credentials", manifestURL(named))}
	case errors.Is(err, docker.ErrInvalidAuthorization), code == http.StatusUnauthorized, code == http.StatusForbidden:
		if said == "" {
			said = "denied: requested access to the resource is denied"
		}
		return fault.NotFoundf("pull access denied for %s, repository does not exist or may require 'docker login': %s", name, said)
	case errdefs.IsNotFound(err), code == http.StatusNotFound:
		return fault.NotFoundf("manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(named))
	case said != "":
		return fmt.Errorf("%s", said)
	}
	return errors.New(queries.ReplaceAllString(strings.ReplaceAll(err.Error(), "failed to do request: ", ""), "$1"))
}

// queries of addresses may hold signatures.
var queries = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)

// registrySays gives the registry's own words: "code: message".
func registrySays(err error) string {
	var list docker.Errors
	if !errors.As(err, &list) || len(list) == 0 {
		return ""
	}
	return strings.TrimSpace(list[0].Error())
}

func manifestURL(named reference.Named) string {
	object := "latest"
	if t, ok := named.(reference.Tagged); ok {
		object = t.Tag()
	}
	return "https://" + registryHost(reference.Domain(named)) + "/v2/" + reference.Path(named) + "/manifests/" + object
}
