// Package build is the noun for making an image from a Dockerfile: what a
// client asks for, and what it is told while it is made. It must not know
// HTTP, nor who builds.
package build

import (
	"io"
	"time"

	"github.com/berth-project/berth/core/image"
)

// Request is one build. Exactly one of Context, Remote and Session is set.
type Request struct {
	ID      string                // of the client's choice, to cancel it by; "" is none
	Context io.Reader             // an archive of the context, in any compression that lib/inflate knows
	Remote  string                // address of a git repository or an archive
	Session string                // id of the client's session, which serves the context
	Version int                   // 1: told as steps; 2: told as BuildKit tells
	Auth    map[string]image.Auth // by registry

	Tags         []string
	Dockerfile   string // path in the context; "" is Dockerfile
	Target       string
	Platform     string
	Args         map[string]string
	Labels       map[string]string
	CacheFrom    []string
	NoCache      bool
	Pull         bool
	Network      string   // "", default, none, host
	ExtraHosts   []string // "name:address"
	ShmSize      int64    // bytes; 0: the default
	Ulimits      []Ulimit
	Limits       map[string]string // of each step: memory, memswap, cpushares, cpuperiod, cpuquota, cpusetcpus, cpusetmems
	CgroupParent string
	// Outputs beside, or in place of, an image of the engine; none is an image.
	Outputs []Output
}

// Ulimit is one limit of steps' processes.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Output is one place for what was built.
type Output struct {
	Type  string
	Attrs map[string]string
}

// Instruction is one line of a Dockerfile that has a part in a build.
type Instruction struct {
	Text string
	Step string // how the name of its Step begins: "2/3" or "stage 2/3"; "" where it makes none
}

// Step is what is known of a step now.
type Step struct {
	ID                 string
	Name               string // "[2/3] RUN …"
	Started, Completed *time.Time
	Cached             bool
	Error              string
}

// Log is output of a step.
type Log struct {
	Step   string // id
	Stream int    // 1 or 2
	Data   []byte
}

// Progress is one piece of news; any field may be empty.
type Progress struct {
	Begun    bool          // the Dockerfile is understood; what fails from here on fails in its instructions
	Plan     []Instruction // comes first, where the Dockerfile is known beforehand
	Steps    []Step
	Logs     []Log
	Warnings []string
	Raw      []byte // for Version 2: BuildKit's StatusResponse
}

// Result of a build.
type Result struct {
	ImageID string // "" where the output was no image
}

// ExitError says that a step's program has ended with a code other than 0.
type ExitError struct {
	Command string // its arguments, joined by spaces
	Code    int
	Why     string // ": what is known of the cause", or ""
	Msg     string // the builder's own words
}

func (e *ExitError) Error() string { return e.Msg }

// Record is one thing in the cache.
type Record struct {
	ID, Type, Description string
	Parents               []string
	InUse, Shared         bool
	Size                  int64
	Created               time.Time
	LastUsed              *time.Time
	Uses                  int
}

// PruneOptions say what of the cache goes.
type PruneOptions struct {
	All                                       bool
	ReservedSpace, MaxUsedSpace, MinFreeSpace int64 // bytes; 0: no bound
	UnusedFor                                 time.Duration
	Filters                                   []string // "type==regular", …
}

// CacheMount is a folder that steps keep for one another (RUN --mount=type=cache).
type CacheMount struct {
	ID       string     `json:"id"`               // as the Dockerfile says it; behind a namespace where there is one
	Key      string     `json:"key"`              // BuildKit's name: namespace, "/", id
	Record   string     `json:"record"`           // the one thing of the cache; several may have one id
	Target   string     `json:"target,omitempty"` // where the step that made it had it
	Size     int64      `json:"size"`             // bytes; 0 while in use
	HasBase  bool       `json:"has_base,omitempty"`
	InUse    bool       `json:"in_use"`
	Shared   bool       `json:"shared"` // with layers of images
	Created  time.Time  `json:"created"`
	LastUsed *time.Time `json:"last_used,omitempty"`
	Uses     int        `json:"uses"`
}

// MountArchive is an archive of cache mounts, to be read once and closed.
type MountArchive struct {
	io.ReadCloser
	Size    int64 // bytes
	Skipped int   // sockets, pipes and devices that it does not hold
}

// MountImport says what becomes of an archive of cache mounts.
type MountImport struct {
	ID      string // of the one mount in the archive, in place of its own; needed for an archive that names none
	Replace bool   // what is here under the same id goes
}
