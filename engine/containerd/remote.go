package containerd

import (
	"context"
	"fmt"
	"runtime"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

const hostArch = runtime.GOARCH

func portText(p container.Port) string { return fmt.Sprintf("%d/%s", p.Number, p.Proto) }

// MountImage is for image mounts, which are refused by name.
func (l *Library) MountImage(context.Context, string, container.ID) (string, error) {
	return "", fault.Unsupportedf("mounts of type image are not supported")
}

// UnmountImage undoes MountImage.
func (l *Library) UnmountImage(context.Context, string, container.ID) error { return nil }

// Pull is refused: registries are not spoken to yet.
func (l *Library) Pull(_ context.Context, ref string, _ image.PullOptions, _ func(image.Progress)) error {
	return fault.Unsupportedf("pull of %s: pulling from a registry is not supported in this version; use docker load or docker import", familiar(ref))
}

// Push is refused likewise.
func (l *Library) Push(_ context.Context, ref string, _ image.PushOptions, _ func(image.Progress)) error {
	return fault.Unsupportedf("push of %s: pushing to a registry is not supported in this version; use docker save", familiar(ref))
}

// Distribution is refused likewise.
func (l *Library) Distribution(context.Context, string, *image.Auth) (image.DistributionInfo, error) {
	return image.DistributionInfo{}, fault.Unsupportedf("asking a registry is not supported in this version")
}

// Search is refused likewise.
func (l *Library) Search(context.Context, string, int, filter.Args, *image.Auth) ([]image.SearchResult, error) {
	return nil, fault.Unsupportedf("searching a registry is not supported in this version")
}

// Login is refused likewise.
func (l *Library) Login(context.Context, image.Auth) (string, string, error) {
	return "", "", fault.Unsupportedf("logging in to a registry is not supported in this version")
}
