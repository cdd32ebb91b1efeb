package container

import (
	"net/netip"
	"time"
)

// ID is 64 lower-case hexadecimal digits.
type ID string

// Short is the form of an id that people read: its first 12 digits.
func (id ID) Short() string {
	if len(id) < 12 {
		return string(id)
	}
	return string(id[:12])
}

// Container is one container as the store keeps it and as callers see it.
// Values handed out by the Service are snapshots: never written to.
type Container struct {
	ID       ID
	Name     string // without a leading slash
	Created  time.Time
	ImageID  string // "sha256:…" of the image's configuration; "" for none
	Platform string
	Path     string // the program: Args' first after entrypoint and cmd are joined
	Args     []string
	Spec     Spec
	State    State
	Mounts   []MountPoint // resolved at creation
	Driver   string       // snapshotter's name as clients know it: "overlay2"

	// Files that Berth makes for the container; "" until first start.
	HostsPath, HostnamePath, ResolvConfPath, LogPath string

	AppArmorProfile string
	ProcessLabel    string
	MountLabel      string
}

// Status is one word for what a container is doing.
type Status string

// A container is created; start makes it running; pause and unpause lie
// between; an exit leads to exited, or to restarting while its policy waits
// to start it again; removing precedes its end; dead is a removal that failed.
//
//	created → running ⇄ paused
//	             ↓  ↑
//	          exited ⇄ restarting
//	             ↓
//	          removing → (gone) | dead
const (
	Created    Status = "created"
	Running    Status = "running"
	Paused     Status = "paused"
	Restarting Status = "restarting"
	Removing   Status = "removing"
	Exited     Status = "exited"
	Dead       Status = "dead"
)

// State is what changes while a container lives.
type State struct {
	Status        Status
	Pid           int
	ExitCode      int
	Error         string // of the last start that failed
	OOMKilled     bool
	StartedAt     time.Time // zero: never
	FinishedAt    time.Time // zero: never
	RestartCount  int
	StoppedByUser bool // stop or kill was asked for: restart policies rest (unless-stopped also over a restart of the daemon)
	Health        *Health
	Endpoints     []Endpoint // present while running, kept while restarting
	Ports         []Binding  // what is published now
	SandboxID     string
	NetNS         string // path of the network namespace; "" when not running
	VolumesToo    bool   // while it is removed: its anonymous volumes go with it
}

// Health is the result of the latest probes.
type Health struct {
	Status        string // "starting", "healthy", "unhealthy"
	FailingStreak int
	Log           []HealthResult // the last five
}

// HealthResult is one probe.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int
	Output     string // at most 4096 bytes
}

// MountPoint is a mount as it was resolved when the container was created.
type MountPoint struct {
	Type          string // bind, volume, tmpfs, image
	Name          string // the volume's name
	Source        string // path on the host
	Destination   string
	Driver        string
	Mode          string
	RW            bool
	Propagation   string
	Anonymous     bool // the volume was made for this container and goes with `rm -v`
	Spec          Mount
	FromContainer string // VolumesFrom's origin
}

// Endpoint is a container's place on a network.
type Endpoint struct {
	NetworkID, NetworkName string
	EndpointID             string
	Spec                   EndpointSpec
	MacAddress             string
	IPv4, IPv6             netip.Prefix // the address with its network's prefix length
	Gateway4, Gateway6     netip.Addr
	DNSNames               []string
	Interface              string // name in the container: "eth0"
}

// Binding is one port that is published now.
type Binding struct {
	Port
	HostIP   netip.Addr
	HostPort uint16
}

// ExecSpec is a further process wanted in a running container.
type ExecSpec struct {
	Cmd                   []string
	Env                   []string
	User                  string
	WorkingDir            string
	TTY                   bool
	Stdin, Stdout, Stderr bool // which streams are attached
	Privileged            bool
	DetachKeys            string
	ConsoleSize           [2]uint // height, width
}

// Exec is such a process.
type Exec struct {
	ID          string
	ContainerID ID
	Spec        ExecSpec
	Running     bool
	ExitCode    *int // nil until it has exited
	Pid         int
	CanRemove   bool
}
