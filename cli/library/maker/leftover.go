package maker

import (
	"context"
	"errors"
	"time"

	"github.com/moby/moby/client"
)

// labelCache is on all that a library build makes in an engine for a while:
// the id of the cache that it worked with.
const labelCache = "org.berth.library.cache"

// abandoned is the age at which things of another cache are left over for
// sure: who works with it may be on another machine.
const abandoned = 24 * time.Hour

// Label marks what somebody makes in the engine for a while, beside the maker:
// what is left of it goes with the next build.
func (m *Maker) Label() map[string]string {
	return map[string]string{labelCache: m.o.Mirror.CacheID()}
}

// temporary are the labels of what a step needs.
func (m *Maker) temporary(step string) map[string]string {
	return map[string]string{labelStep: step, labelCache: m.o.Mirror.CacheID()}
}

// removeLeftovers removes the containers, images, volumes and networks of
// builds that were killed. One that has ended orderly has left none.
func (m *Maker) removeLeftovers(ctx context.Context) error {
	e := m.o.Engine
	marked := client.Filters{}.Add("label", labelCache)
	old := time.Now().Add(-abandoned)
	left := func(labels map[string]string, made time.Time) bool {
		mine := m.o.Mirror.Alone() && labels[labelCache] == m.o.Mirror.CacheID()
		return mine || made.Before(old)
	}
	containers, err := e.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: marked})
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range containers.Items {
		if left(c.Labels, time.Unix(c.Created, 0)) {
			_, err := e.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			errs = append(errs, err)
		}
	}
	images, err := e.ImageList(ctx, client.ImageListOptions{All: true, Filters: marked})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, i := range images.Items {
		if left(i.Labels, time.Unix(i.Created, 0)) {
			_, err := e.ImageRemove(ctx, i.ID, client.ImageRemoveOptions{Force: true, PruneChildren: true})
			errs = append(errs, err)
		}
	}
	volumes, err := e.VolumeList(ctx, client.VolumeListOptions{Filters: marked})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, v := range volumes.Items {
		made, err := time.Parse(time.RFC3339, v.CreatedAt)
		if err == nil && left(v.Labels, made) {
			_, err := e.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{Force: true})
			errs = append(errs, err)
		}
	}
	networks, err := e.NetworkList(ctx, client.NetworkListOptions{Filters: marked})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, n := range networks.Items {
		if left(n.Labels, n.Created) {
			_, err := e.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
