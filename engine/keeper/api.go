// Package keeper is the daemon's side of berth-keeper, the small resident
// process that is the parent of every container of one engine and holds its
// pipes and terminals. The package owns the protocol between both, starts the
// keeper where none answers and finds it again. It must not know images,
// networks or what a container is for; engine/keeper/serve is the other side.
package keeper

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Version of the protocol. A keeper outlives upgrades of the daemon, so a
// change must be understood by both or this number rises.
const Version = 1

// Limits of the protocol.
const (
	MaxFrame = 16 << 20 // bytes of one message
	MaxFiles = 3        // descriptors with one message
)

// Operations, by the type of their body.
const (
	opVersion    = "version"     // → VersionInfo
	opCreate     = "create"      // CreateRequest → Started + pipes
	opStart      = "start"       // Ref
	opExec       = "exec"        // ExecRequest → Started + pipes
	opKill       = "kill"        // KillRequest
	opResize     = "resize"      // ResizeRequest
	opCloseStdin = "close-stdin" // Ref
	opPause      = "pause"       // Ref
	opResume     = "resume"      // Ref
	opUpdate     = "update"      // UpdateRequest
	opPids       = "pids"        // Ref → []int
	opDelete     = "delete"      // Ref
	opList       = "list"        // → []Process
	opPipes      = "pipes"       // Ref → StreamSet + pipes
	opAdopt      = "adopt-pipes" // AdoptRequest + pipes: gives back what a dead keeper held
	opSubscribe  = "subscribe"   // then Exit frames follow with op "exit"
	opAck        = "ack"         // Ref: the exit is safe with the daemon
	opShutdown   = "shutdown"    // ends an empty keeper
	opExit       = "exit"
)

// Ref names one process: the first of a container where Exec is "".
type Ref struct {
	ID   string `json:"id"`
	Exec string `json:"exec,omitempty"`
}

// StreamSet says which streams a process has at the keeper.
type StreamSet struct {
	TTY    bool `json:"tty,omitempty"`
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// CreateRequest makes a container and its first process, stopped before its
// program. The spec is complete (OCI runtime specification 1.2).
type CreateRequest struct {
	ID      string      `json:"id"`
	Spec    *specs.Spec `json:"spec"`
	Streams StreamSet   `json:"streams"`
	Fifos   Fifos       `json:"fifos,omitzero"`
	Systemd bool        `json:"systemd,omitempty"` // cgroups are made by systemd
}

// ExecRequest starts a further process.
type ExecRequest struct {
	Ref
	Process *specs.Process `json:"process"`
	Streams StreamSet      `json:"streams"`
	Fifos   Fifos          `json:"fifos,omitzero"`
}

// Fifos are files that are a process's streams in place of pipes: a client's
// fifos, or for output a file that is written at its end. A process with a
// terminal has none. The Stdin and Stdout that come back are their other ends.
type Fifos struct {
	Stdin  string `json:"stdin,omitempty"`
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

// Started tells of a process that was made.
type Started struct {
	Pid       int               `json:"pid"`
	StartTime uint64            `json:"start_time,omitempty"` // as in Process; not told by older keepers
	Streams   StreamSet         `json:"streams"`
	Cgroups   map[string]string `json:"cgroups,omitempty"` // controller ("" on v2) to path
}

// KillRequest sends a signal; All sends it to every process of the container.
type KillRequest struct {
	Ref
	Signal int  `json:"signal"`
	All    bool `json:"all,omitempty"`
}

// ResizeRequest sets a terminal's size in characters.
type ResizeRequest struct {
	Ref
	Height uint16 `json:"height"`
	Width  uint16 `json:"width"`
}

// UpdateRequest replaces limits; nil fields stay as they are.
type UpdateRequest struct {
	Ref
	Resources *specs.LinuxResources `json:"resources"`
}

// AdoptRequest returns pipes to a keeper that was started after another died.
type AdoptRequest struct {
	Ref
	Streams StreamSet `json:"streams"`
}

// Process is what the keeper knows of one process.
type Process struct {
	Ref
	Pid       int               `json:"pid"`
	StartTime uint64            `json:"start_time"` // clock ticks since boot: with the pid it names a process for ever
	Streams   StreamSet         `json:"streams"`
	Status    string            `json:"status"` // created, running, paused, exited
	Created   bool              `json:"created,omitempty"`
	Exit      *Exit             `json:"exit,omitempty"`
	Cgroups   map[string]string `json:"cgroups,omitempty"`
	// Inodes of the pipes of its output, by which they are found again.
	Outputs [2]uint64 `json:"outputs,omitzero"`
}

// Exit is the end of a process. It is journaled until it is acknowledged.
type Exit struct {
	Ref
	Pid     int       `json:"pid"`
	Code    int       `json:"code"` // 128+n for signal n
	Time    time.Time `json:"time"`
	OOM     bool      `json:"oom,omitempty"`
	Unknown bool      `json:"unknown,omitempty"` // nobody saw it; the code is 137
}

// VersionInfo tells who answers.
type VersionInfo struct {
	Protocol int    `json:"protocol"`
	Build    string `json:"build"`
	Pid      int    `json:"pid"`
	Runc     string `json:"runc"`
}

// Failure is an error as it travels. Class is a word of lib/fault's classes.
type Failure struct {
	Class string `json:"class"`
	Text  string `json:"text"`
}

// Frame is one message: a request, its answer (same Seq), or an exit (Seq 0).
type Frame struct {
	Seq     uint64          `json:"seq,omitempty"`
	Op      string          `json:"op,omitempty"`
	Failure *Failure        `json:"failure,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
}
