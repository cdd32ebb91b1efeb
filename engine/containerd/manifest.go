package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/lib/fault"
)

// Limits of what a manifest may name.
const (
	maxLayers    = 512
	maxManifests = 1024
	maxDepth     = 64      // of nested JSON
	maxLayerSize = 1 << 40 // bytes of one compressed layer
)

// readIndex checks and reads an index or manifest list.
func readIndex(b []byte, mediaType string) (ocispec.Index, error) {
	var i ocispec.Index
	if err := checkDocument(b, mediaType, "config", "layers", "fsLayers"); err != nil {
		return i, err
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fault.Invalidf("index: %w", err)
	}
	if len(i.Manifests) > maxManifests {
		return i, fault.Invalidf("index names %d manifests; the limit is %d", len(i.Manifests), maxManifests)
	}
	for _, d := range i.Manifests {
		if err := checkDescriptor(d); err != nil {
			return i, err
		}
	}
	return i, nil
}

// readManifest checks and reads the manifest of one image.
func readManifest(b []byte, mediaType string) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := checkDocument(b, mediaType, "manifests", "fsLayers"); err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fault.Invalidf("manifest: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return m, fault.Invalidf("manifest names %d layers; the limit is %d", len(m.Layers), maxLayers)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return m, err
		}
	}
	return m, nil
}

// imageLayers says why a manifest's layers are not a root file system, if so.
func imageLayers(m ocispec.Manifest) error {
	if m.Config.MediaType != images.MediaTypeDockerSchema2Config && m.Config.MediaType != ocispec.MediaTypeImageConfig {
		return fault.Invalidf("%q is no image: its configuration is of type %q", m.Config.Digest, m.Config.MediaType)
	}
	for _, d := range m.Layers {
		if images.IsNonDistributable(d.MediaType) {
			return fault.Unsupportedf("layer %s is a foreign layer: its content must be fetched from elsewhere, which is not supported", d.Digest)
		}
		if !images.IsLayerType(d.MediaType) {
			return fault.Invalidf("layer %s is of the unknown type %q", d.Digest, d.MediaType)
		}
	}
	return nil
}

// readConfig checks that a configuration fits its manifest's layers.
func readConfig(b []byte, m ocispec.Manifest) (dockerspec.DockerOCIImage, error) {
	var c dockerspec.DockerOCIImage
	if err := unique(b); err != nil {
		return c, fault.Invalidf("configuration: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fault.Invalidf("configuration: %w", err)
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return c, fault.Invalidf("configuration: unknown root file system type %q", c.RootFS.Type)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return c, fault.Invalidf("invalid number of layers: the configuration names %d, the manifest %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return c, fault.Invalidf("configuration: diff id: %w", err)
		}
	}
	return c, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fault.Invalidf("descriptor: %w", err)
	}
	if d.Digest.Algorithm() != digest.SHA256 && d.Digest.Algorithm() != digest.SHA512 {
		return fault.Invalidf("descriptor: unsupported digest algorithm %s", d.Digest.Algorithm())
	}
	if d.Size < 0 || d.Size > maxLayerSize {
		return fault.Invalidf("descriptor of %s: size %d is not valid", d.Digest, d.Size)
	}
	return nil
}

// checkDocument refuses documents that two readers may take for two things:
// duplicate keys, a media type that differs from the one it came under, or
// the fields of another kind.
func checkDocument(b []byte, mediaType string, foreign ...string) error {
	if err := unique(b); err != nil {
		return fault.Invalidf("manifest: %w", err)
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(b, &doc); err != nil {
		return fault.Invalidf("manifest: %w", err)
	}
	for key := range doc {
		for _, known := range []string{"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "subject", "artifactType"} {
			// Readers of JSON in Go do not tell cases apart; others do.
			if key != known && strings.EqualFold(key, known) {
				return fault.Invalidf("manifest: unknown key %q", key)
			}
		}
	}
	for _, key := range foreign {
		if _, has := doc[key]; has {
			return fault.Invalidf("manifest of type %q must not have %q", mediaType, key)
		}
	}
	var own string
	if raw, has := doc["mediaType"]; has {
		if err := json.Unmarshal(raw, &own); err != nil {
			return fault.Invalidf("manifest: mediaType: %w", err)
		}
	}
	if own != "" && own != mediaType {
		return fault.Invalidf("manifest says it is of type %q but came as %q", own, mediaType)
	}
	return nil
}

// unique refuses JSON that is nested too deep or that names a key twice.
func unique(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := uniqueValue(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the end of the document")
	}
	return nil
}

func uniqueValue(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deep")
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	keys := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			key, _ := t.(string)
			if keys[key] {
				return fmt.Errorf("duplicate key %q", key)
			}
			keys[key] = true
		}
		if err := uniqueValue(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// choose picks from an index the manifest for a platform ("": this host's).
func choose(i ocispec.Index, platform string) (ocispec.Descriptor, error) {
	matcher := platforms.Default()
	shown := platforms.FormatAll(platforms.DefaultSpec())
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return ocispec.Descriptor{}, fault.Invalidf("%w", err)
		}
		matcher, shown = platforms.Only(p), platforms.FormatAll(p)
	}
	var fit []ocispec.Descriptor
	for _, d := range i.Manifests {
		if d.Annotations[attestationKey] == attestation || !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			continue
		}
		if d.Platform != nil && !matcher.Match(*d.Platform) {
			continue
		}
		fit = append(fit, d)
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, fault.NotFoundf("no matching manifest for %s in the manifest list entries", shown)
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case matcher.Less(*a.Platform, *b.Platform):
			return -1
		case matcher.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return fit[0], nil
}

// How BuildKit marks what is no image in an index.
const (
	attestationKey = "vnd.docker.reference.type"
	attestation    = "attestation-manifest"
)
