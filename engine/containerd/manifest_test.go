package containerd

import (
	"encoding/json"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func FuzzDocumentsFromOutside(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":[]},"config":{"Env":["A=b"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readManifest(b, ocispec.MediaTypeImageManifest)
		if err == nil {
			if unique(b) != nil {
				t.Fatal("an ambiguous manifest passes")
			}
			var other struct {
				Manifests json.RawMessage `json:"manifests"`
			}
			if json.Unmarshal(b, &other) == nil && other.Manifests != nil {
				t.Fatal("an index passes as a manifest")
			}
			_ = imageLayers(m)
		}
		if i, err := readIndex(b, ocispec.MediaTypeImageIndex); err == nil {
			_, _ = choose(i, "linux/arm64")
		}
		if c, err := readConfig(b, ocispec.Manifest{}); err == nil {
			imageConfig(c.Config)
		}
	})
}

func TestHostsAreRelatedByTheirDomain(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"registry-1.docker.io", "auth.docker.io", true},
		{"registry.gitlab.com", "gitlab.com", true},
		{"reg.example.com:5000", "auth.example.com", true},
		{"127.0.0.1:5000", "127.0.0.1:5001", true},
		{"127.0.0.1:5000", "127.0.0.2:5000", false},
		{"ghcr.io", "evil.io", false},
		{"a.github.io", "b.github.io", false},
		{"example.co.uk", "other.co.uk", false},
		{"[::1]:5000", "[::1]:5001", true},
	} {
		if related(c.a, c.b) != c.want {
			t.Errorf("related(%s, %s) is not %v", c.a, c.b, c.want)
		}
	}
}
