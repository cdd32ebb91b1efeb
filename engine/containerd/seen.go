package containerd

import (
	"github.com/containerd/containerd/v2/core/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type (
	ocispecDigest     = digest.Digest
	ocispecDescriptor = ocispec.Descriptor
)

// eventName gives the name of the image that an event is about.
func eventName(e *events.Envelope) (string, bool) {
	return e.Field([]string{"event", "name"})
}
