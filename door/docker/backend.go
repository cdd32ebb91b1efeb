// Package docker is the door for Docker clients: the Docker Engine API, 1.24
// to 1.56, translated to core's services and back. It decides nothing.
package docker

import (
	"context"
	"io"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/system"
	"github.com/berth-project/berth/core/volume"
)

// Containers is what this door needs of the container service. Every id may
// be a full id, a name (with or without a leading slash) or an id prefix.
type Containers interface {
	Create(ctx context.Context, s container.Spec, o container.CreateOptions) (id container.ID, warnings []string, err error)
	Get(ctx context.Context, id string) (container.Container, error)
	Size(ctx context.Context, id string) (writable, total int64, err error)
	GraphDriver(ctx context.Context, id string) (map[string]string, error)
	ExecIDs(id container.ID) []string
	List(ctx context.Context, o container.ListOptions) ([]container.Summary, error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string, o container.StopOptions) error
	Restart(ctx context.Context, id string, o container.StopOptions) error
	Kill(ctx context.Context, id, signal string) error
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Rename(ctx context.Context, id, name string) error
	Update(ctx context.Context, id string, o container.UpdateOptions) (warnings []string, err error)
	Remove(ctx context.Context, id string, o container.RemoveOptions) error
	// Wait returns once the wait is registered; the result comes on the channel.
	Wait(ctx context.Context, id string, c container.WaitCondition) (<-chan container.WaitResult, error)
	Attach(ctx context.Context, id string, o container.AttachOptions) (container.Attachment, error)
	Logs(ctx context.Context, id string, o container.LogOptions, emit func(container.LogRecord) error) error
	Resize(ctx context.Context, id string, height, width uint16) error
	Top(ctx context.Context, id, psArgs string) (container.TopResult, error)
	Stats(ctx context.Context, id string) (container.Stats, error)
	Changes(ctx context.Context, id string) ([]container.Change, error)
	Export(ctx context.Context, id string, w io.Writer) error
	StatPath(ctx context.Context, id, path string) (container.PathStat, error)
	CopyFrom(ctx context.Context, id, path string, w func(container.PathStat) io.Writer) error
	CopyTo(ctx context.Context, id, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error
	Commit(ctx context.Context, id string, o container.CommitOptions) (imageID string, err error)
	Prune(ctx context.Context, f filter.Args) (container.PruneResult, error)

	ExecCreate(ctx context.Context, id string, s container.ExecSpec) (execID string, err error)
	// ExecStart starts the process. With detach the attachment is nil.
	ExecStart(ctx context.Context, execID string, detach bool, consoleSize *[2]uint) (container.Attachment, error)
	ExecGet(ctx context.Context, execID string) (container.Exec, error)
	ExecResize(ctx context.Context, execID string, height, width uint16) error

	// Connect and Disconnect keep the change for stopped containers too.
	Connect(ctx context.Context, id string, e container.EndpointSpec) error
	Disconnect(ctx context.Context, id, network string, force bool) error
}

// Images is what this door needs of the image service.
type Images interface {
	List(ctx context.Context, o image.ListOptions) ([]image.Image, error)
	Get(ctx context.Context, ref, platform string, manifests bool) (image.Image, error)
	History(ctx context.Context, ref, platform string) ([]image.HistoryItem, error)
	Tag(ctx context.Context, source, target string) error
	Remove(ctx context.Context, ref string, force, prune bool, platforms []string) ([]image.RemoveResult, error)
	Prune(ctx context.Context, f filter.Args) ([]image.RemoveResult, int64, error)
	Pull(ctx context.Context, ref string, o image.PullOptions, report func(image.Progress)) error
	Push(ctx context.Context, ref string, o image.PushOptions, report func(image.Progress)) error
	Load(ctx context.Context, r io.Reader, quiet bool, platforms []string, report func(image.Progress)) error
	Save(ctx context.Context, refs []string, platforms []string, w io.Writer) error
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) (imageID string, err error)
	// ImportURL fetches the archive that o.Source names.
	ImportURL(ctx context.Context, o image.ImportOptions, report func(image.Progress)) (imageID string, err error)
	Attestations(ctx context.Context, ref, platform string, types []string, statements bool) ([]image.Attestation, error)
	Distribution(ctx context.Context, ref string, a *image.Auth) (image.DistributionInfo, error)
	Search(ctx context.Context, term string, limit int, f filter.Args, a *image.Auth) ([]image.SearchResult, error)
	Login(ctx context.Context, a image.Auth) (status, identityToken string, err error)
	Usage(ctx context.Context) (image.Usage, error)
}

// Networks is what this door needs of the network service.
type Networks interface {
	Create(ctx context.Context, o network.CreateOptions) (id, warning string, err error)
	Get(ctx context.Context, nameOrID, scope string) (network.Attached, error)
	List(ctx context.Context, f filter.Args) ([]network.Attached, error)
	Remove(ctx context.Context, nameOrID string) error
	Prune(ctx context.Context, f filter.Args) (removed []string, err error)
}

// Volumes is what this door needs of the volume service.
type Volumes interface {
	Create(ctx context.Context, o volume.CreateOptions) (volume.Volume, error)
	Get(ctx context.Context, name string) (volume.Volume, error)
	List(ctx context.Context, f filter.Args) ([]volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, f filter.Args) (removed []string, reclaimed int64, err error)
	// Usage is List with sizes and reference counts.
	Usage(ctx context.Context) ([]volume.Volume, error)
}

// System is what this door needs to know of the daemon and its host.
type System interface {
	Info(ctx context.Context) (system.Info, error)
	Version() system.Version
}

// Events is the daemon's bus.
type Events interface {
	Subscribe(ctx context.Context, since time.Time) ([]event.Event, <-chan event.Event)
}
