// Package image owns the noun image: content under a reference, in a library
// that an engine keeps. It must not know HTTP, SQL or the words of any client.
package image

import (
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/filter"
)

// Image is one image of one platform, fully described.
type Image struct {
	ID                           string   // "sha256:…" of its configuration
	RepoTags                     []string // familiar form, "redis:7"
	RepoDigests                  []string // "redis@sha256:…"
	Parent                       string
	Comment                      string
	Author                       string
	Created                      time.Time
	LastTagged                   time.Time
	OS, Arch, Variant, OSVersion string
	Size                         int64    // bytes of the unpacked layers
	SharedSize                   int64    // -1 where not computed
	Layers                       []string // diff ids
	Config                       container.ImageConfig
	RawConfig                    []byte            // the configuration's "config" object as JSON, whole
	Containers                   int               // how many containers use it; -1 where not computed
	Layer                        map[string]string // the paths inspect shows as GraphDriver data
	Manifest                     Descriptor        // of the manifest of this platform
	Target                       Descriptor        // what the reference points at (index or manifest)
	Manifests                    []ManifestSummary // of an index, where asked for
}

// Descriptor points at content (OCI image specification, descriptor.md).
type Descriptor struct {
	MediaType   string
	Digest      string
	Size        int64
	Platform    *Platform
	Annotations map[string]string
}

// Platform of content (OCI image specification, image-index.md).
type Platform struct {
	OS, Architecture, Variant, OSVersion string
	OSFeatures                           []string
}

// ManifestSummary is one manifest of an index, whether its content is here or not.
type ManifestSummary struct {
	Descriptor   Descriptor
	Available    bool
	ContentSize  int64
	UnpackedSize int64
	Kind         string // "image", "attestation", "unknown"
	Containers   []string
}

// Attestation is one in-toto statement about an image.
type Attestation struct {
	Descriptor    Descriptor
	PredicateType string // a URI
	Statement     []byte // JSON; nil where not asked for
}

// HistoryItem is one step of an image's making.
type HistoryItem struct {
	ID        string // of the image at that step, "<missing>" for others
	Created   time.Time
	CreatedBy string
	Comment   string
	Size      int64
	Tags      []string
}

// Progress is one report of long work: either Status, perhaps with counters, or
// Stream, which is plain text (load), or Aux.
type Progress struct {
	ID             string // short layer id; "" for the whole
	Status         string // "Downloading", "Pull complete", …
	Current, Total int64
	Stream         string
	Aux            any // pull and push: PushResult
}

// PushResult is the last word of a push.
type PushResult struct {
	Tag, Digest string
	Size        int64
}

// Auth is what a person gave to reach one registry.
type Auth struct {
	Username, Password, IdentityToken, RegistryToken, ServerAddress string
}

// PullOptions of one pull.
type PullOptions struct {
	Platform string
	All      bool // all tags
	Auth     *Auth
}

// PushOptions of one push.
type PushOptions struct {
	Platform string
	All      bool
	Auth     *Auth
}

// ListOptions select images.
type ListOptions struct {
	All        bool
	SharedSize bool
	Manifests  bool
	Filters    filter.Args
}

// RemoveResult is one line of a removal.
type RemoveResult struct {
	Untagged, Deleted string // one of both
}

// ImportOptions make an image of a plain file system archive.
type ImportOptions struct {
	Reference string // "" leaves it untagged
	Message   string
	Changes   []string // Dockerfile instructions
	Platform  string
	Source    string // shown in history
}

// CommitInput is what a commit of a container gives to the library.
type CommitInput struct {
	ContainerID                container.ID
	ParentID                   string
	Config                     container.ImageConfig
	Comment, Author, Reference string
	ContainerName              string
	Changes                    []string // Dockerfile instructions
}

// DistributionInfo is what a registry tells of a reference.
type DistributionInfo struct {
	Descriptor Descriptor
	Platforms  []Platform
}

// SearchResult is one row of a registry search.
type SearchResult struct {
	Name, Description   string
	Stars               int
	Official, Automated bool
}

// Usage is the images' part of the disk.
type Usage struct {
	Images      []Image
	LayersSize  int64 // bytes on disk, shared layers counted once
	Reclaimable int64
}
