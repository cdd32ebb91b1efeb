package app

import (
	"context"
	"io"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
)

// Containers is what applications need of the container service.
type Containers interface {
	All() []container.Container
	Get(ctx context.Context, id string) (container.Container, error)
	Create(ctx context.Context, s container.Spec, o container.CreateOptions) (id container.ID, warnings []string, err error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string, o container.StopOptions) error
	Restart(ctx context.Context, id string, o container.StopOptions) error
	Kill(ctx context.Context, id, signal string) error
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Rename(ctx context.Context, id, name string) error
	Remove(ctx context.Context, id string, o container.RemoveOptions) error
	TakeOver(ctx context.Context, from, to string) error
	Wait(ctx context.Context, id string, c container.WaitCondition) (<-chan container.WaitResult, error)
	CopyTo(ctx context.Context, id, path string, r io.Reader, noOverwriteDirNonDir, asUser bool) error
	Logs(ctx context.Context, id string, o container.LogOptions, emit func(container.LogRecord) error) error
	Connect(ctx context.Context, id string, e container.EndpointSpec) error
	Disconnect(ctx context.Context, id, network string, force bool) error
	ExecCreate(ctx context.Context, id string, s container.ExecSpec) (execID string, err error)
	ExecStart(ctx context.Context, execID string, detach bool, size *[2]uint) (container.Attachment, error)
	ExecGet(ctx context.Context, execID string) (container.Exec, error)
}

// Networks is what they need of the network service.
type Networks interface {
	Create(ctx context.Context, o network.CreateOptions) (id, warning string, err error)
	List(ctx context.Context, f filter.Args) ([]network.Attached, error)
	Remove(ctx context.Context, nameOrID string) error
	// Succeed lets a container start while another has the host ports that both
	// ask for: until TakeOver they lead to the other.
	Succeed(from, to container.ID)
	// Hide has the names that a container shares with others lead to the others
	// alone, until it is shown or ends.
	Hide(id container.ID, hidden bool)
}

// Volumes is what they need of the volume service.
type Volumes interface {
	Create(ctx context.Context, o volume.CreateOptions) (volume.Volume, error)
	List(ctx context.Context, f filter.Args) ([]volume.Volume, error)
	Remove(ctx context.Context, name string) error
}

// Images is what they need of the library.
type Images interface {
	Get(ctx context.Context, ref, platform string, manifests bool) (image.Image, error)
	Pull(ctx context.Context, ref string, o image.PullOptions, report func(image.Progress)) error
	Remove(ctx context.Context, ref string, force, prune bool, platforms []string) ([]image.RemoveResult, error)
}

// Events is the daemon's bus.
type Events interface {
	Subscribe(ctx context.Context, since time.Time) ([]event.Event, <-chan event.Event)
	Publish(e event.Event)
}

// Store remembers what is wanted. A Put is on disk when it returns.
type Store interface {
	PutApp(ctx context.Context, r Record) error
	DeleteApp(ctx context.Context, name string) error
	Apps(ctx context.Context) ([]Record, error)
	PutRevision(ctx context.Context, app string, r Revision) error
	DeleteRevision(ctx context.Context, app string, number int) error
	Revision(ctx context.Context, app string, number int) (Revision, error) // fault.ErrNotFound
	Revisions(ctx context.Context, app string) ([]Revision, error)          // oldest first, with their documents
	RevisionNumbers(ctx context.Context, app string) ([]int, error)         // ascending
	PutJob(ctx context.Context, j JobRecord) error
	DeleteJob(ctx context.Context, app, job string) error
	Jobs(ctx context.Context) ([]JobRecord, error)
}

// Record is one application as the store keeps it.
type Record struct {
	Name          string   `json:"name"`
	Current       int      `json:"current"`            // revision that is wanted; 0: none, it was taken down
	Services      []string `json:"services,omitempty"` // that were brought up; nil means all
	Compatibility bool     `json:"compatibility,omitempty"`
	Stopped       bool     `json:"stopped,omitempty"` // stopped by a person: the daemon starts nothing
	Journal       *Journal `json:"journal,omitempty"` // of the operation under way
	Apart         []Apart  `json:"apart,omitempty"`
}

// Apart is a container that was taken off a network which is made anew, until
// it is on it again: what is there does not tell of it.
type Apart struct {
	Container string `json:"container"`
	Network   string `json:"network"` // its key in the file
}

// before is the revision to which a failure goes back.
func (r Record) before() int {
	if j := r.Journal; j != nil && j.Revision == r.Current {
		return j.Before
	}
	return r.Current
}

// JobRecord is what lasts of a job.
type JobRecord struct {
	App     string    `json:"app"`
	Name    string    `json:"name"`
	Seen    time.Time `json:"seen"` // until then its schedule was followed
	Last    time.Time `json:"last,omitzero"`
	Outcome string    `json:"outcome,omitempty"`
	Queued  int       `json:"queued,omitempty"`
}

// Journal is what a daemon needs to finish what another began. Steps are not
// in it: what was done is seen in what there is.
type Journal struct {
	Operation string       `json:"operation"`
	Verb      string       `json:"verb"`
	Started   time.Time    `json:"started"`
	Revision  int          `json:"revision,omitempty"`
	Before    int          `json:"before,omitempty"` // the revision to which a failure goes back
	Policy    Policy       `json:"policy"`
	Down      *DownRequest `json:"down,omitempty"`
}
