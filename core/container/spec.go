// Package container owns the noun container: what a person asked for (Spec),
// what it is doing (State), and the service that creates, starts, watches,
// restarts and removes containers through ports that engines implement.
// It must not know HTTP, SQL, OCI or the words of any client.
package container

import (
	"net/netip"
	"time"
)

// Spec is everything a person asked for, fully translated: a door turns its
// own words into a Spec and a Spec back into its own words, and loses nothing
// either way. Image defaults are already merged in. The service authorises
// and validates a Spec, never a door's request.
type Spec struct {
	Image string // the reference as the person typed it

	// The process.
	Entrypoint                              []string
	Cmd                                     []string
	Shell                                   []string `json:",omitempty"`
	OnBuild                                 []string `json:",omitempty"`
	ArgsEscaped                             bool     `json:",omitempty"`
	Env                                     []string // "KEY=value"; "KEY" removes an image's variable
	WorkingDir                              string
	User                                    string // user[:group], names or numbers
	GroupAdd                                []string
	Umask                                   *uint32 `json:",omitempty"`
	TTY                                     bool
	OpenStdin                               bool
	StdinOnce                               bool
	AttachStdin, AttachStdout, AttachStderr bool
	ConsoleSize                             [2]uint // height, width
	StopSignal                              string  // name or number; "" means SIGTERM
	StopTimeout                             *int    // seconds; nil means the daemon's default of 10, -1 means wait for ever
	Init                                    *bool   // nil means the daemon's setting
	Health                                  *HealthCheck

	// Its name to the world.
	Hostname    string
	Domainname  string
	Labels      map[string]string
	Annotations map[string]string

	// What happens when it ends.
	Restart    RestartPolicy
	AutoRemove bool

	// Files.
	Mounts        []Mount
	VolumesFrom   []string // container[:ro|rw]
	VolumeDriver  string
	StorageOpt    map[string]string
	ShmSize       int64 // bytes; 0 means 64 MiB
	ReadonlyRoot  bool
	MaskedPaths   []string // nil means the defaults; empty and non-nil means none
	ReadonlyPaths []string // nil means the defaults; empty and non-nil means none

	// Network.
	NetworkMode     string // "default", "bridge", "host", "none", "container:<id>", or a network's name or id
	NetworkDisabled bool
	OffNetworks     bool           `json:",omitempty"` // it was taken off all networks, also that of NetworkMode
	Endpoints       []EndpointSpec // by network; the one of NetworkMode may be absent
	MacAddress      string         // of the endpoint of NetworkMode
	Publish         []Publish
	Expose          []Port
	PublishAll      bool
	DNS             []netip.Addr
	DNSOptions      []string
	DNSSearch       []string
	ExtraHosts      []string // "name:address"
	Links           []string // "container:alias"

	// Isolation.
	Privileged   bool
	CapAdd       []string
	CapDrop      []string
	SecurityOpt  []string // "seccomp=…" holds the profile's text, not a path
	Sysctls      map[string]string
	IpcMode      string // "", "private", "shareable", "host", "none", "container:<id>"
	PidMode      string // "", "host", "container:<id>"
	UTSMode      string // "", "host"
	UsernsMode   string // "", "host"
	CgroupnsMode string // "", "private", "host"
	Cgroup       string
	Runtime      string // "" means the daemon's default

	Resources Resources
	Log       LogConfig

	ContainerIDFile string // what the client wrote; shown back only
	Isolation       string // shown back only
}

// Resources are limits; zero means none. Sizes are in bytes, times in
// microseconds unless the name says otherwise.
type Resources struct {
	CPUShares                                                  int64
	NanoCPUs                                                   int64
	CPUPeriod                                                  int64
	CPUQuota                                                   int64
	CPURealtimePeriod                                          int64
	CPURealtimeRuntime                                         int64
	CpusetCpus                                                 string
	CpusetMems                                                 string
	Memory                                                     int64
	MemoryReservation                                          int64
	MemorySwap                                                 int64 // memory and swap together; -1 is unlimited
	MemorySwappiness                                           *int64
	KernelMemoryTCP                                            int64
	OomKillDisable                                             *bool
	OomScoreAdj                                                int
	PidsLimit                                                  *int64 // nil or 0 means the daemon's default; -1 is unlimited
	CgroupParent                                               string
	BlkioWeight                                                uint16
	BlkioWeightDevice                                          []WeightDevice
	BlkioReadBps, BlkioWriteBps, BlkioReadIOps, BlkioWriteIOps []ThrottleDevice
	Devices                                                    []Device
	DeviceCgroupRules                                          []string
	DeviceRequests                                             []DeviceRequest
	Ulimits                                                    []Ulimit
}

// WeightDevice is a block IO weight (10–1000) for one device.
type WeightDevice struct {
	Path   string
	Weight uint16
}

// ThrottleDevice is a limit in bytes or operations a second for one device.
type ThrottleDevice struct {
	Path string
	Rate uint64
}

// Device is a host device, or a folder of them, given to a container.
type Device struct {
	PathOnHost, PathInContainer, CgroupPermissions string
}

// DeviceRequest asks a device driver (GPUs, CDI) for devices.
type DeviceRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
	Options      map[string]string
}

// Ulimit is a resource limit of the first process.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// LogConfig names the log driver and its options. An empty driver means the
// daemon's default.
type LogConfig struct {
	Driver  string
	Options map[string]string
}

// Restart policies.
const (
	RestartNo            = "no"
	RestartAlways        = "always"
	RestartOnFailure     = "on-failure"
	RestartUnlessStopped = "unless-stopped"
)

// RestartPolicy says when an exited container is started again.
type RestartPolicy struct {
	Name       string // "" and "no" are the same
	MaxRetries int    // for on-failure; 0 is no limit
	// Window is how long a run must last to be no failure of those that
	// MaxRetries counts; 0: every one counts.
	Window time.Duration
}

// HealthCheck is a probe run inside the container. Test[0] is "NONE", "CMD"
// or "CMD-SHELL"; an empty Test inherits the image's.
type HealthCheck struct {
	Test                                          []string
	Interval, Timeout, StartPeriod, StartInterval time.Duration // 0 means the default
	Retries                                       int
}

// Kinds of mounts.
const (
	MountBind   = "bind"
	MountVolume = "volume"
	MountTmpfs  = "tmpfs"
	MountImage  = "image"
)

// Where a Mount was asked for, so that a door can show it back as it came.
const (
	FromBinds   = "binds"   // -v source:target
	FromMounts  = "mounts"  // --mount
	FromTmpfs   = "tmpfs"   // --tmpfs
	FromVolumes = "volumes" // an image's VOLUME or -v target: anonymous
)

// Mount is one mount wanted in a container, of whatever origin.
type Mount struct {
	Type        string // bind, volume, tmpfs, image
	Source      string // host path, volume name ("" is anonymous) or image
	Target      string // absolute path in the container
	ReadOnly    bool
	Mode        string // the options of -v ("ro,z"), or of --tmpfs ("size=1m"), as given
	Consistency string
	Origin      string // FromBinds, …

	// bind
	Propagation                                  string // "" means rprivate
	NonRecursive                                 bool
	CreateMountpoint                             bool // make a missing source folder, as -v does
	ReadOnlyNonRecursive, ReadOnlyForceRecursive bool

	// volume
	NoCopy        bool
	Subpath       string // also image
	VolumeLabels  map[string]string
	VolumeDriver  string
	VolumeOptions map[string]string

	// tmpfs
	TmpfsSize    int64
	TmpfsMode    uint32
	TmpfsOptions [][]string

	// How much of the options was given, so a door shows back nil as nil.
	HasBindOptions, HasVolumeOptions, HasTmpfsOptions, HasImageOptions, HasDriverConfig bool `json:",omitempty"`
}

// Port is a port of a container. Proto is "tcp", "udp" or "sctp".
type Port struct {
	Number uint16
	Proto  string
}

// Publish maps a host's port to a container's. HostPort may be a range, out
// of which one free port is taken; HostPortEnd is 0 where it is a single one.
type Publish struct {
	Port
	HostIP                netip.Addr // invalid means all addresses
	HostPort, HostPortEnd uint16     // 0 means any free port
	HostIPText            string     // as given, shown back
}

// EndpointSpec is what was asked for on one network.
type EndpointSpec struct {
	Network    string // name or id as given
	Aliases    []string
	Links      []string
	MacAddress string
	IPv4, IPv6 netip.Addr // static addresses; invalid means from the pool
	LinkLocal  []netip.Addr
	DriverOpts map[string]string
	GwPriority int
	HasIPAM    bool // static addresses were a given object, even if empty
}
