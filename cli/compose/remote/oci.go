package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/lib/fault"
)

// What docker compose publishes: a manifest whose layers are Compose files and
// files of variables.
const (
	ociPrefix     = "oci://"
	typeProject   = "application/vnd.docker.compose.project"
	typeOldConfig = "application/vnd.docker.compose.config.empty.v1+json"
	typeFile      = "application/vnd.docker.compose.file+yaml"
	typeEnvFile   = "application/vnd.docker.compose.envfile"

	maxBlob   = 16 << 20
	maxLayers = 1000
)

// OCI fetches references oci://registry/name:tag of published projects.
type OCI struct {
	cache    string
	insecure []string // registries that are asked over plain HTTP
	login    func(registry string) (user, password string)
	client   *http.Client
	known    map[string]string
}

// NewOCI keeps artifacts below cache ("" for the user's own). login gives a
// user and password for a registry, or "".
func NewOCI(cache string, insecure []string, login func(registry string) (user, password string)) *OCI {
	return &OCI{cache: cache, insecure: insecure, login: login, client: &http.Client{}, known: map[string]string{}}
}

// Accept says whether the reference is one to an artifact.
func (o *OCI) Accept(reference string) bool { return strings.HasPrefix(reference, ociPrefix) }

// Dir is the folder that relative paths in the file start from.
func (o *OCI) Dir(reference string) string {
	if dir, ok := o.known[reference]; ok {
		return dir
	}
	return filepath.Dir(reference)
}

// Load fetches the artifact's files and returns the path of the Compose file.
func (o *OCI) Load(ctx context.Context, ref string) (string, error) {
	if err := enabled("COMPOSE_EXPERIMENTAL_OCI_REMOTE"); err != nil {
		return "", err
	}
	named, err := reference.ParseDockerRef(strings.TrimPrefix(ref, ociPrefix))
	if err != nil {
		return "", fault.Invalidf("%s: %w", ref, err)
	}
	r := &repository{o: o, named: named}
	manifest, id, err := r.manifest(ctx)
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", ref, err)
	}
	dir, err := folder(o.cache, "oci", id.Encoded())
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		if err := fill(dir, func(dir string) error { return r.files(ctx, manifest, dir) }); err != nil {
			return "", fmt.Errorf("fetch %s: %w", ref, err)
		}
	}
	o.known[ref] = dir
	return filepath.Join(dir, "compose.yaml"), nil
}

// repository is one repository of a registry, for the time of one Load.
type repository struct {
	o     *OCI
	named reference.Named
	auth  string // the header that the registry wanted
}

// manifest gives the project's manifest and the digest of what the reference names.
func (r *repository) manifest(ctx context.Context) (m v1.Manifest, id digest.Digest, err error) {
	target := "latest"
	switch n := r.named.(type) {
	case reference.Canonical:
		target = n.Digest().String()
	case reference.Tagged:
		target = n.Tag()
	}
	text, err := r.get(ctx, "manifests/"+target)
	if err != nil {
		return m, "", err
	}
	id = digest.FromBytes(text)
	if c, ok := r.named.(reference.Canonical); ok && c.Digest() != id {
		return m, "", fault.Invalidf("the registry gave %s", id)
	}
	var index v1.Index
	if json.Unmarshal(text, &index) == nil && len(index.Manifests) > 0 {
		i := slices.IndexFunc(index.Manifests, func(d v1.Descriptor) bool { return d.ArtifactType == typeProject })
		if i < 0 {
			return m, "", fault.Invalidf("it is no Compose project, but an index without one")
		}
		want := index.Manifests[i].Digest
		if text, err = r.verified(ctx, "manifests/", want); err != nil {
			return m, "", err
		}
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, "", fault.Invalidf("its manifest: %w", err)
	}
	if m.ArtifactType != typeProject && (m.ArtifactType != "" || m.Config.MediaType != typeOldConfig) {
		return m, "", fault.Invalidf("it is no Compose project, but %q", m.ArtifactType+m.Config.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return m, "", fault.Invalidf("it has more than %d files", maxLayers)
	}
	return m, id, nil
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// files writes the layers: the Compose files one after another into one of
// several documents, what they extend and their variables beside it.
func (r *repository) files(ctx context.Context, m v1.Manifest, dir string) error {
	var whole []byte
	for _, layer := range m.Layers {
		name := ""
		switch layer.MediaType {
		case typeFile:
			if _, ok := layer.Annotations["com.docker.compose.extends"]; ok {
				name = layer.Annotations["com.docker.compose.file"]
			}
		case typeEnvFile:
			name = layer.Annotations["com.docker.compose.envfile"]
		default:
			continue
		}
		text, err := r.verified(ctx, "blobs/", layer.Digest)
		if err != nil {
			return err
		}
		if name == "" && layer.MediaType == typeFile {
			if len(whole) > 0 {
				whole = append(whole, "\n---\n"...)
			}
			if whole = append(whole, text...); len(whole) > maxBlob {
				return fault.Invalidf("its Compose files have more than %d bytes", maxBlob)
			}
			continue
		}
		if !plainName.MatchString(name) || name == "." || name == ".." || name == "compose.yaml" {
			return fault.Invalidf("it has a file of the name %q", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	if len(whole) == 0 {
		return fault.Invalidf("it has no Compose file")
	}
	return os.WriteFile(filepath.Join(dir, "compose.yaml"), whole, 0o600)
}

func (r *repository) verified(ctx context.Context, kind string, want digest.Digest) ([]byte, error) {
	if err := want.Validate(); err != nil {
		return nil, fault.Invalidf("%q: %w", want, err)
	}
	text, err := r.get(ctx, kind+want.String())
	if err != nil {
		return nil, err
	}
	if want.Algorithm().FromBytes(text) != want {
		return nil, fault.Invalidf("what the registry gave is not %s", want)
	}
	return text, nil
}

// get asks the registry, with the authorisation it wants.
func (r *repository) get(ctx context.Context, path string) ([]byte, error) {
	host := reference.Domain(r.named)
	if host == "docker.io" {
		host = "registry-1.docker.io"
	}
	scheme := "https"
	if name, _, _ := net.SplitHostPort(host); slices.Contains(r.o.insecure, host) || name == "localhost" || name == "127.0.0.1" {
		scheme = "http"
	}
	address := scheme + "://" + host + "/v2/" + reference.Path(r.named) + "/" + path
	for attempt := 0; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, fault.Invalidf("%w", err)
		}
		req.Header.Set("Accept", strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, "*/*"}, ", "))
		if r.auth != "" {
			req.Header.Set("Authorization", r.auth)
		}
		text, status, header, err := r.do(req)
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusOK:
			return text, nil
		case status == http.StatusUnauthorized && attempt == 0:
			if err := r.authorise(ctx, header.Get("WWW-Authenticate")); err != nil {
				return nil, err
			}
		case status == http.StatusNotFound:
			return nil, fault.NotFoundf("%s is not there", address)
		default:
			return nil, fault.Unavailablef("%s: %s", address, http.StatusText(status))
		}
	}
}

func (r *repository) do(req *http.Request) (text []byte, status int, header http.Header, err error) {
	resp, err := r.o.client.Do(req)
	if err != nil {
		return nil, 0, nil, fault.Unavailablef("%w", err)
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(io.LimitReader(resp.Body, maxBlob+1))
	if err != nil {
		return nil, 0, nil, fault.Unavailablef("%w", err)
	}
	if len(text) > maxBlob {
		return nil, 0, nil, fault.Invalidf("%s has more than %d bytes", req.URL, maxBlob)
	}
	return text, resp.StatusCode, resp.Header, nil
}

var challengeField = regexp.MustCompile(`(\w+)="([^"]*)"`)

// authorise answers a registry's challenge: a token of its own issuer, or the
// user's password.
func (r *repository) authorise(ctx context.Context, challenge string) error {
	kind, rest, _ := strings.Cut(challenge, " ")
	user, password := r.o.login(reference.Domain(r.named))
	basic, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
	if err != nil {
		return fault.Internalf("%w", err)
	}
	basic.SetBasicAuth(user, password)
	if strings.EqualFold(kind, "Basic") && user != "" {
		r.auth = basic.Header.Get("Authorization")
		return nil
	}
	fields := map[string]string{}
	for _, m := range challengeField.FindAllStringSubmatch(rest, -1) {
		fields[m[1]] = m[2]
	}
	realm, err := url.Parse(fields["realm"])
	if err != nil || !strings.EqualFold(kind, "Bearer") || realm.Host == "" {
		return &fault.Error{Class: fault.ErrUnauthenticated, Msg: "the registry wants a login: berth login " + reference.Domain(r.named)}
	}
	q := realm.Query()
	q.Set("service", fields["service"])
	q.Set("scope", "repository:"+reference.Path(r.named)+":pull")
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return fault.Invalidf("%w", err)
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	text, status, _, err := r.do(req)
	if err != nil {
		return err
	}
	var token struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if status != http.StatusOK || json.Unmarshal(text, &token) != nil || token.Token+token.AccessToken == "" {
		return &fault.Error{Class: fault.ErrUnauthenticated, Msg: "the registry gave no token; log in: berth login " + reference.Domain(r.named)}
	}
	if token.Token == "" {
		token.Token = token.AccessToken
	}
	r.auth = "Bearer " + token.Token
	return nil
}
