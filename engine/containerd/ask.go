package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// Limits of registries' answers.
const (
	maxAnswer = 4 << 20 // bytes of one page
	maxPages  = 1000
	maxTags   = 100_000
	maxSearch = 100 // rows, as the Hub
)

// get asks one registry host, answering a challenge once.
func (r *registries) get(ctx context.Context, h docker.RegistryHost, address string) (*http.Response, error) {
	var asked []*http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("User-Agent", userAgent)
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			return nil, err
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || len(asked) > 0 {
			return resp, nil
		}
		_ = resp.Body.Close()
		asked = append(asked, resp)
		if err := h.Authorizer.AddResponses(ctx, asked); err != nil {
			return nil, err
		}
	}
}

// tags lists all tags of a repository (distribution specification, "Listing Tags").
func (r *registries) tags(ctx context.Context, named reference.Named, a *image.Auth) ([]string, error) {
	domain := reference.Domain(named)
	h, err := r.endpoint(ctx, domain, "https", registryHost(domain), a)
	if err != nil {
		return nil, err
	}
	ctx = docker.WithScope(ctx, "repository:"+reference.Path(named)+":pull")
	next := h.Scheme + "://" + h.Host + h.Path + "/" + reference.Path(named) + "/tags/list"
	var tags []string
	for range maxPages {
		resp, err := r.get(ctx, h, next)
		if err != nil {
			return nil, err
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		err = readAnswer(resp, &page)
		if err != nil {
			return nil, err
		}
		tags = append(tags, page.Tags...)
		link, _, more := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
		if !more || len(tags) > maxTags {
			slices.Sort(tags)
			return slices.Compact(tags), nil
		}
		u, err := resp.Request.URL.Parse(link)
		if err != nil || u.Host != resp.Request.URL.Host {
			return nil, fault.Invalidf("registry %s continues its list at %q: refused", h.Host, link)
		}
		u.Scheme = h.Scheme
		next = u.String()
	}
	return tags, nil
}

// readAnswer decodes a success, or gives the registry's refusal.
func readAnswer(resp *http.Response, to any) error {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(b, to)
	}
	var said docker.Errors
	_ = json.Unmarshal(b, &said)
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return errors.Join(docker.ErrInvalidAuthorization, said)
	case http.StatusNotFound:
		return fault.NotFoundf("%s: repository name not known to registry", resp.Request.URL.Host)
	}
	if len(said) > 0 {
		return said
	}
	return fmt.Errorf("unexpected status from GET request to %s: %s", resp.Request.URL, resp.Status)
}

// Distribution tells what a registry has under a reference, fetching no layer.
func (l *Library) Distribution(ctx context.Context, ref string, a *image.Auth) (image.DistributionInfo, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return image.DistributionInfo{}, fault.Invalidf("invalid reference format: %w", err)
	}
	named = reference.TagNameOnly(named)
	info, err := l.distribution(ctx, named, a)
	return info, remoteError(named, err)
}

func (l *Library) distribution(ctx context.Context, named reference.Named, a *image.Auth) (image.DistributionInfo, error) {
	resolver := l.reg.Load().resolver(ctx, a, nil)
	_, d, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return image.DistributionInfo{}, err
	}
	out := image.DistributionInfo{Descriptor: image.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size}}
	fetcher, err := resolver.Fetcher(ctx, named.String())
	if err != nil {
		return out, err
	}
	b, err := fetchSmall(ctx, fetcher, d)
	if err != nil {
		return out, err
	}
	add := func(p ocispec.Platform) {
		out.Platforms = append(out.Platforms, image.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
	}
	if images.IsIndexType(d.MediaType) {
		index, err := readIndex(b, d.MediaType)
		for _, m := range index.Manifests {
			if m.Platform != nil {
				add(*m.Platform)
			}
		}
		return out, err
	}
	m, err := readManifest(b, d.MediaType)
	if err != nil || imageLayers(m) != nil {
		return out, err
	}
	if b, err = fetchSmall(ctx, fetcher, m.Config); err != nil {
		return out, err
	}
	c, err := readConfig(b, m)
	add(c.Platform)
	return out, err
}

// fetchSmall reads a document and verifies its digest.
func fetchSmall(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fault.Invalidf("%s of %d bytes exceeds the limit of %d", d.MediaType, d.Size, maxConfig)
	}
	d.URLs = nil
	r, err := f.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxConfig))
	if err != nil {
		return nil, err
	}
	if d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return nil, fault.Invalidf("content is not what its digest %s says", d.Digest)
	}
	return b, nil
}

// Login tries a name and password at a registry, and gives the registry's
// long-lived token where it has one.
func (l *Library) Login(ctx context.Context, a image.Auth) (status, identityToken string, err error) {
	domain := a.ServerAddress
	if u, err := url.Parse(domain); err == nil && u.Host != "" {
		domain = u.Host
	}
	domain, _, _ = strings.Cut(domain, "/")
	if domain == "" || domain == hubIndex || domain == hubRegistry {
		domain = hubDomain
	}
	if strings.ContainsAny(domain, " @?#") {
		return "", "", fault.Invalidf("invalid registry address %q", a.ServerAddress)
	}
	h, err := l.reg.Load().endpoint(ctx, domain, "https", registryHost(domain), &a)
	if err != nil {
		return "", "", err
	}
	t, err := l.reg.Load().transport(h.Host, l.reg.Load().insecure(ctx, domain))
	if err != nil {
		return "", "", err
	}
	h.Authorizer = l.reg.Load().authorizer(t, h.Host, l.reg.Load().insecure(ctx, domain), &a, func(_ context.Context, token string, _ *http.Request) { identityToken = token })
	address := h.Scheme + "://" + h.Host + h.Path + "/"
	resp, err := l.reg.Load().get(ctx, h, address)
	refused := func() (string, string, error) {
		return "", "", &fault.Error{Class: fault.ErrUnauthenticated, Msg: fmt.Sprintf("Get %q: unauthorized: incorrect username or password", address)}
	}
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization) || err != nil && strings.Contains(err.Error(), "401 Unauthorized"):
		return refused()
	case err != nil:
		return "", "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return "Login Succeeded", identityToken, nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return refused()
	}
	return "", "", fmt.Errorf("login attempt to %s failed with status: %s", address, resp.Status)
}

// Search asks the Hub, or the registry before the first slash of the term.
func (l *Library) Search(ctx context.Context, term string, limit int, f filter.Args, a *image.Auth) ([]image.SearchResult, error) {
	if err := f.Check("is-automated", "is-official", "stars"); err != nil {
		return nil, err
	}
	official, byOfficial, err := f.Bool("is-official")
	if err != nil {
		return nil, err
	}
	automated, byAutomated, err := f.Bool("is-automated")
	if err != nil {
		return nil, err
	}
	stars := 0
	for _, v := range f["stars"] {
		var n int
		if _, err := fmt.Sscan(v, &n); err != nil {
			return nil, fault.Invalidf("invalid filter 'stars=%s'", v)
		}
		stars = max(stars, n)
	}
	if limit == 0 {
		limit = 25
	}
	if limit < 1 || limit > maxSearch {
		return nil, fault.Invalidf("limit %d is outside the range of [1, %d]", limit, maxSearch)
	}
	domain := hubIndex
	if first, rest, ok := strings.Cut(term, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		domain, term = first, rest
	}
	if domain == hubDomain {
		domain = hubIndex
	}
	h, err := l.reg.Load().endpoint(ctx, domain, "https", domain, a)
	if err != nil {
		return nil, err
	}
	resp, err := l.reg.Load().get(ctx, h, h.Scheme+"://"+h.Host+"/v1/search?"+url.Values{"q": {term}, "n": {fmt.Sprint(limit)}}.Encode())
	if err != nil {
		return nil, err
	}
	var page struct {
		Results []struct {
			Name        string `json:"name"`
			Description string `json:"description"`
			Stars       int    `json:"star_count"`
			Official    bool   `json:"is_official"`
			Automated   bool   `json:"is_automated"`
		} `json:"results"`
	}
	if err := readAnswer(resp, &page); err != nil {
		return nil, err
	}
	list := []image.SearchResult{}
	for _, s := range page.Results {
		if byOfficial && s.Official != official || byAutomated && s.Automated != automated || s.Stars < stars {
			continue
		}
		list = append(list, image.SearchResult{Name: s.Name, Description: s.Description, Stars: s.Stars, Official: s.Official, Automated: s.Automated})
	}
	return list, nil
}
