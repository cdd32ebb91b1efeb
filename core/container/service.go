package container

import (
	"io"
	"time"

	"github.com/berth-project/berth/core/filter"
)

// CreateOptions go with a Spec.
type CreateOptions struct {
	Name     string // "" lets the service choose a word pair
	Platform string // "os/arch[/variant]"; "" is any
}

// RemoveOptions say how far a removal goes.
type RemoveOptions struct {
	Force, Volumes, Link bool
}

// ListOptions select containers.
type ListOptions struct {
	All     bool
	Limit   int  // 0: all; counts stopped ones too
	Size    bool // fill Summary's sizes
	Filters filter.Args
}

// Summary is a row of a list.
type Summary struct {
	Container
	SizeRw, SizeRootFs int64 // bytes; -1 where not asked for
}

// WaitCondition says what a wait is for.
type WaitCondition string

// Conditions of a wait.
const (
	WaitNotRunning WaitCondition = "not-running"
	WaitNextExit   WaitCondition = "next-exit"
	WaitRemoved    WaitCondition = "removed"
)

// WaitResult is how a wait ended.
type WaitResult struct {
	ExitCode int
	Err      string // why a removal or a start failed
}

// AttachOptions say which streams are wanted, live (Stream) and from the log (Logs).
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Stream, Logs          bool
	DetachKeys            string
}

// Attachment is registered output and input of a container or an exec. It
// loses nothing between registration and Serve.
type Attachment interface {
	TTY() bool
	// Serve copies until the process ends, the client leaves (stdin's error)
	// or the detach keys are typed. stdin may be nil.
	Serve(stdin io.Reader, stdout, stderr io.Writer) error
	// Close gives up an attachment that will not be served.
	Close()
}

// UpdateOptions change a container's limits. Nil fields stay.
type UpdateOptions struct {
	Resources Resources // zero fields stay
	Restart   *RestartPolicy
}

// TopResult is a table of processes.
type TopResult struct {
	Titles    []string
	Processes [][]string
}

// PruneResult tells what a prune removed.
type PruneResult struct {
	Removed   []string
	Reclaimed int64 // bytes
}

// CommitOptions make an image of a container.
type CommitOptions struct {
	Reference string // repository[:tag]; "" leaves it untagged
	Comment   string
	Author    string
	Pause     bool
	Changes   []string     // Dockerfile instructions
	Config    *ImageConfig // replaces the container's configuration where given
}

// StopOptions: nil fields mean the container's own, then the daemon's default.
type StopOptions struct {
	Signal  string
	Timeout *int // seconds; -1 waits for ever
}

// HealthDefaults of a HealthCheck whose fields are zero.
const (
	HealthInterval      = 30 * time.Second
	HealthTimeout       = 30 * time.Second
	HealthStartInterval = 5 * time.Second
	HealthRetries       = 3
)
