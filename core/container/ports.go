package container

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"
)

// Store remembers containers. A Put is on disk when it returns; a Note
// survives this process, but perhaps not a power cut.
type Store interface {
	PutContainer(ctx context.Context, c Container) error
	PutContainers(ctx context.Context, list ...Container) error // all or none
	NoteContainer(ctx context.Context, c Container) error
	DeleteContainer(ctx context.Context, id ID) error
	Containers(ctx context.Context) ([]Container, error)
}

// Bundle is all a Runtime needs to make a container's first process.
type Bundle struct {
	Container Container
	Root      string // path of the mounted root file system on the host
	Mounts    []BundleMount
	NetNS     string            // path; "" with HostNetwork
	Namespace map[string]string // "ipc", "pid", "network": path of another's namespace to join
	Resume    bool
}

// BundleMount is a bind or tmpfs ready to be mounted. Target is resolved
// inside the root by the runtime at the moment of use.
type BundleMount struct {
	Source, Target, Type string
	Options              []string
	Subpath              string // of a bind: below Source, resolved inside it at the moment of use
	Relabel              Relabel
}

// Relabel says whose the files of a mount become on a host with SELinux.
type Relabel string

// Files keep their label, or take one that all containers may use, or this container alone.
const (
	RelabelNone    Relabel = ""
	RelabelShared  Relabel = "z"
	RelabelPrivate Relabel = "Z"
)

// Confinement is how the host's security modules hold a container; its fields
// are "" where the host has no such module.
type Confinement struct {
	AppArmorProfile          string
	ProcessLabel, MountLabel string // SELinux's
}

// Pipes are Berth's ends of a process's standard streams. With a terminal
// Stdin and Stdout are the same pty master and Stderr is nil. A stream that
// was not asked for is nil.
type Pipes struct {
	Stdin          *os.File
	Stdout, Stderr *os.File
}

// Task is what a Runtime knows of a process after a restart of the daemon.
type Task struct {
	ID     ID
	Pid    int
	Status Status // Created, Running, Paused or Exited
	Exit   Exit   // where Exited
}

// Exit is the end of a process.
type Exit struct {
	ContainerID ID
	ExecID      string // "" for the first process
	Pid         int
	Code        int // 128+n for signal n
	Time        time.Time
	OOMKilled   bool
	Unknown     bool // nobody saw the exit: the code is 137 by convention
}

// Runtime runs processes. All its calls are safe for concurrent use; calls
// on different containers do not wait for one another.
type Runtime interface {
	// Knows tells whether a container may ask for a runtime by this name.
	Knows(name string) bool
	// Confine chooses the confinement of a container that is being made, or
	// keeps that of one found again. joined are those whose ipc and pid
	// namespaces it shares. What it reserves, Release gives back.
	Confine(c Container, joined []Container) (Confinement, error)
	Release(c Container)
	// Create makes the first process, stopped before its program.
	Create(ctx context.Context, b Bundle) (pid int, p Pipes, err error)
	// Start lets the first process run its program. The error's text tells
	// a missing program (ErrNotFound) from one that may not run (ErrPermission).
	Start(ctx context.Context, id ID) error
	// Exec starts a further process.
	Exec(ctx context.Context, id ID, execID string, c Container, s ExecSpec) (pid int, p Pipes, err error)
	// Pipes gives the streams of a process found again after a restart.
	Pipes(ctx context.Context, id ID, execID string) (Pipes, error)
	// Kill sends a signal to a process (execID "" is the first one).
	Kill(ctx context.Context, id ID, execID string, sig syscall.Signal) error
	Resize(ctx context.Context, id ID, execID string, height, width uint16) error
	CloseStdin(ctx context.Context, id ID, execID string) error
	Pause(ctx context.Context, id ID) error
	Resume(ctx context.Context, id ID) error
	Update(ctx context.Context, c Container, r Resources) error
	Pids(ctx context.Context, id ID) ([]int, error)
	// Root opens the root of a running container as its first process sees it;
	// it stays readable when the container ends.
	Root(id ID) (*os.File, error)
	Stats(ctx context.Context, c Container) (Stats, error)
	// Delete forgets an exited process, killing what may still run of it.
	Delete(ctx context.Context, id ID, execID string) error
	// Tasks lists all first processes that are still known.
	Tasks(ctx context.Context) ([]Task, error)
	// Exits delivers each exit once, until ctx ends. Exits that happened
	// while nobody listened are delivered first.
	Exits(ctx context.Context) <-chan Exit
}

// RootFS makes the writable root file system of a container from an image.
type RootFS interface {
	Prepare(ctx context.Context, id ID, imageID string, storageOpt map[string]string) error
	// Mount is counted: each needs an Unmount. label is SELinux's of the files; "" where there is none.
	Mount(ctx context.Context, id ID, label string) (path string, err error)
	Unmount(ctx context.Context, id ID) error
	Remove(ctx context.Context, id ID) error
	// Sweep removes the roots that a killed daemon had made for containers
	// that it did not live to remember.
	Sweep(ctx context.Context, known func(ID) bool) error
	// Usage gives the bytes of the writable layer and of the whole root.
	Usage(ctx context.Context, id ID) (writable, total int64, err error)
	// Layers gives the paths that inspect shows as GraphDriver data.
	Layers(ctx context.Context, id ID) (map[string]string, error)
	// Changes lists what differs from the image, sorted by path.
	Changes(ctx context.Context, id ID) ([]Change, error)
}

// Change is one path that differs from the image: Kind 0 modified, 1 added, 2 deleted.
type Change struct {
	Path string
	Kind int
}

// Files reads and writes inside a mounted root, resolving every path inside
// it at the moment of use (openat2 RESOLVE_IN_ROOT).
type Files interface {
	Stat(root, path string) (PathStat, error)
	// Tar archives a path under its last element's name: "/" and "." too, as
	// docker cp expects. Of the path "" the names are those in the root.
	Tar(ctx context.Context, root, path string, w io.Writer) (PathStat, error)
	// Untar extracts into the folder path.
	Untar(ctx context.Context, root, path string, r io.Reader, o UntarOptions) error
	// View shows a root that nobody runs in with mounts over it, at a path of
	// its own until close is called.
	View(root string, readOnly bool, mounts []BundleMount) (path string, close func() error, err error)
	// ReadFile reads a small file (passwd, group), at most limit bytes.
	ReadFile(root, path string, limit int64) ([]byte, error)
	// CopyUp fills a folder on the host from path in the root, keeping owner
	// and mode of the folder itself. into gives the folder, and is asked for it
	// only where the root has something at path.
	CopyUp(ctx context.Context, root, path string, into func() (dir string, err error)) error
}

// UntarOptions say how an archive is extracted.
type UntarOptions struct {
	KeepKinds bool   // refuses to replace a folder by a file or a file by a folder
	Owner     *Owner // of all that is extracted; nil keeps the archive's owners
}

// Owner is a user and a group as numbers.
type Owner struct{ UID, GID uint32 }

// PathStat describes a path in a container, as `docker cp` needs it.
type PathStat struct {
	Name       string
	Size       int64
	Mode       os.FileMode
	ModTime    time.Time
	LinkTarget string // resolved inside the root
}

// Output moves what first processes write to their logs and to those attached.
type Output interface {
	// Check validates a log driver and its options.
	Check(cfg LogConfig) error
	// Pump takes p over and begins; it returns at once. After a restart of
	// the daemon the same call continues where the log stopped.
	Pump(ctx context.Context, c Container, p Pipes) (Stream, error)
	// Logs emits the records of a container's log in order. With Follow it
	// returns when the stream is drained or ctx ends.
	Logs(ctx context.Context, c Container, o LogOptions, emit func(LogRecord) error) error
	// LogPath is the file that inspect shows ("" where the driver has none).
	LogPath(c Container) string
	// Forget removes the log.
	Forget(c Container) error
}

// Stream is the live output of one run of a container.
type Stream interface {
	// Subscribe delivers output from now on until cancel is called or all
	// output has been delivered; w's blocking slows the container, not memory.
	// A nil writer skips that stream. done is closed when delivery has ended.
	Subscribe(stdout, stderr io.Writer) (done <-chan struct{}, cancel func())
	// Stdin is the process's input, nil where it has none.
	Stdin() io.WriteCloser
	// Drained is closed when all output is in the log and delivered.
	Drained() <-chan struct{}
	// Close gives up after an exit: descendants may hold the pipes open.
	Close() error
}

// LogOptions selects records.
type LogOptions struct {
	Stdout, Stderr bool
	Since, Until   time.Time // zero: no bound
	Tail           int       // -1: all
	Follow         bool
	Details        bool
}

// LogRecord is one line, or a part of one longer than 16 KiB.
type LogRecord struct {
	Stderr bool
	Time   time.Time
	Line   []byte // with its newline, absent only in a part or at the very end
	Attrs  map[string]string
}

// Networks gives a container its place on networks.
type Networks interface {
	// Check validates mode, endpoints and publishing before a container is made.
	Check(ctx context.Context, c Container) error
	// Open makes the network namespace and all endpoints, publishes ports and
	// opens the resolver. Nothing is left of a failed Open.
	Open(ctx context.Context, c Container) (Sandbox, error)
	// Close takes all that down. Closing what is not open is no error.
	Close(ctx context.Context, c Container) error
	// Connect and Disconnect change a running container and give what is
	// published then; the service keeps the result in Spec.Endpoints,
	// State.Endpoints and State.Ports.
	Connect(ctx context.Context, c Container, e EndpointSpec) (Endpoint, []Binding, error)
	Disconnect(ctx context.Context, c Container, network string, force bool) ([]Binding, error)
	// Resolve gives the id and name of a network that exists.
	Resolve(ctx context.Context, nameOrID string) (id, name string, err error)
	// Renamed tells that names of a running container have changed.
	Renamed(ctx context.Context, c Container) error
	// Restore takes over what the last daemon had opened for running
	// containers, repairs what is damaged and removes what has no owner.
	Restore(ctx context.Context, running []Container) error
	// NetStats reads the interfaces' counters of an open sandbox.
	NetStats(c Container) (map[string]NetStats, error)
	// TakeOver gives a running container the host ports that it asks for and
	// lacks; those that from has move without a moment between. It gives what
	// is published now, of to and of from.
	TakeOver(from, to Container) (now, left []Binding, err error)
}

// Sandbox is what Open made.
type Sandbox struct {
	ID        string
	NetNS     string // path to join; "" for the host's
	Endpoints []Endpoint
	Ports     []Binding
	Hosts     []byte // contents for /etc/hosts; nil means the host's own file
	Resolv    []byte // contents for /etc/resolv.conf
}

// Volumes gives storage that outlives containers.
type Volumes interface {
	// Ensure gives the named volume, making it where it is not there. Nobody
	// removes it until user gives it back by Unmount.
	Ensure(ctx context.Context, name, driver string, options, labels map[string]string, anonymous bool, user ID) (Volume, error)
	// Hold does so with a volume that is there.
	Hold(name string, user ID) error
	// Fill gives an empty volume its first content: all that write writes into
	// the folder that it asks for, or nothing.
	Fill(ctx context.Context, name string, user ID, write func(into func() (dir string, err error)) error) error
	// Mount gives the path on the host of a volume while user holds it.
	Mount(ctx context.Context, name string, user ID) (path string, err error)
	Unmount(ctx context.Context, name string, user ID) error
	Remove(ctx context.Context, name string) error
	// Restore tells that running containers hold their volumes.
	Restore(running []Container)
}

// Volume is what a container needs to know of a volume.
type Volume struct {
	Name, Driver, Path string
}

// Images resolves what containers are made from.
type Images interface {
	// Resolve finds an image by reference, id or id prefix.
	Resolve(ctx context.Context, ref, platform string) (ImageInfo, error)
	// MountImage gives a read-only path for an image mount.
	MountImage(ctx context.Context, ref string, user ID) (path string, err error)
	UnmountImage(ctx context.Context, ref string, user ID) error
}

// ImageInfo is what a container inherits from its image.
type ImageInfo struct {
	ID        string // "sha256:…"
	Reference string
	Platform  string // "linux/amd64"
	Config    ImageConfig
}

// ImageConfig holds the defaults that an image gives to its containers, in the
// words of the OCI image specification (config.md) and Docker's extensions.
type ImageConfig struct {
	User         string
	ExposedPorts []Port
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      []string
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	Health       *HealthCheck
	OnBuild      []string
	Shell        []string
	ArgsEscaped  bool
}

// Stats are counters of one container at one moment.
type Stats struct {
	Read       time.Time
	Pids       uint64
	PidsLimit  uint64 // 0: none
	CPU        CPUStats
	SystemCPU  uint64 // nanoseconds all cores of the host have worked
	OnlineCPUs uint32
	Memory     MemoryStats
	Blkio      BlkioStats
	Networks   map[string]NetStats
	CgroupV2   bool
}

// CPUStats: all times in nanoseconds.
type CPUStats struct {
	Total, User, Kernel                      uint64
	PerCPU                                   []uint64
	Periods, ThrottledPeriods, ThrottledTime uint64
}

// MemoryStats: sizes in bytes; Stats are the kernel's memory.stat.
type MemoryStats struct {
	Usage, MaxUsage, Failcnt, Limit uint64
	Stats                           map[string]uint64
}

// BlkioEntry is one counter of one device.
type BlkioEntry struct {
	Major, Minor uint64
	Op           string
	Value        uint64
}

// BlkioStats mirror the cgroup files of block IO.
type BlkioStats struct {
	ServiceBytes, Serviced, Queued, ServiceTime, WaitTime, Merged, Time, Sectors []BlkioEntry
}

// NetStats are counters of one interface.
type NetStats struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}
