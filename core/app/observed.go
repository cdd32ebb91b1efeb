package app

import (
	"cmp"
	"path"
	"slices"
	"time"

	"github.com/berth-project/berth/core/image"
)

// Observed is what there is of one application, as its labels tell.
type Observed struct {
	App        string              `json:"app"`
	Containers []ObservedContainer `json:"containers"` // by service, number, age
	Networks   []ObservedNetwork   `json:"networks"`
	Volumes    []ObservedVolume    `json:"volumes"`
	Images     map[string]Image    `json:"images,omitempty"` // by the name the file uses; absent is not here
}

// ObservedContainer is one container of an application.
type ObservedContainer struct {
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Service      string            `json:"service"`
	Number       int               `json:"number"` // 0: a one-off
	OneOff       bool              `json:"one_off,omitempty"`
	Hook         string            `json:"hook,omitempty"` // a runner of this lifecycle hook
	Hash         string            `json:"hash"`
	Image        string            `json:"image"` // digest recorded when it was made
	ImageID      string            `json:"image_id,omitempty"`
	ImageVolumes string            `json:"image_volumes,omitempty"`
	State        string            `json:"state"`            // created, running, paused, restarting, exited, dead
	Health       string            `json:"health,omitempty"` // starting, healthy, unhealthy
	ExitCode     int               `json:"exit_code"`
	Created      time.Time         `json:"created"`
	Networks     []string          `json:"networks,omitempty"`    // ids of those it is on, or would be if it ran
	Volumes      []string          `json:"volumes,omitempty"`     // names of those mounted
	Ports        []string          `json:"ports,omitempty"`       // wanted on the host: "0.0.0.0:80/tcp"
	Unpublished  bool              `json:"unpublished,omitempty"` // it runs, and a port of these does not lead to it
	Labels       map[string]string `json:"-"`
}

// ObservedNetwork is a network by the label of an application, or one of a wanted name.
type ObservedNetwork struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Key  string `json:"key,omitempty"`  // in the file
	App  string `json:"app,omitempty"`  // whose label it carries
	Hash string `json:"hash,omitempty"` // "" where it was made by others
}

// ObservedVolume is a volume by the label of an application, or one of a wanted name.
type ObservedVolume struct {
	Name string `json:"name"`
	Key  string `json:"key,omitempty"`
	App  string `json:"app,omitempty"`
	Hash string `json:"hash,omitempty"`
}

// Image is one that is in the library.
type Image struct {
	ID      string    `json:"id"`                // of its configuration
	Digest  string    `json:"digest,omitempty"`  // of its manifest, where it has one
	Tagged  time.Time `json:"tagged,omitzero"`   // when it came under its name
	Volumes []string  `json:"volumes,omitempty"` // paths its VOLUME names
}

// imageOf is what is known of an image that is here.
func imageOf(i image.Image) Image {
	o := Image{ID: i.ID, Digest: i.Manifest.Digest, Tagged: i.LastTagged}
	for _, v := range i.Config.Volumes {
		o.Volumes = append(o.Volumes, path.Clean(v))
	}
	return o
}

// label is what docker compose 5.6.0 records of an image with a container: the
// digest of the manifest where the engine tells it, as ours does.
func (i Image) label() string { return cmp.Or(i.Digest, i.ID) }

// is tells whether a container was made from this image: by what was recorded
// with it (older docker composes record the configuration's id), or by the image
// it has, for a push may give an image another manifest.
func (i Image) is(c ObservedContainer) bool {
	return c.Image == i.ID || c.Image == i.label() || c.ImageID == i.ID && i.ID != ""
}

// sort brings an observation into the one order that plans are made from.
func (o *Observed) sort() {
	slices.SortFunc(o.Containers, func(a, b ObservedContainer) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Number, b.Number), a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(o.Networks, func(a, b ObservedNetwork) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	slices.SortFunc(o.Volumes, func(a, b ObservedVolume) int { return cmp.Compare(a.Name, b.Name) })
}
