package containerd

import (
	"context"
	"fmt"
	"runtime"

	"github.com/berth-project/berth/core/container"
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
