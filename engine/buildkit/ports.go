package buildkit

import (
	"context"
	"os"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Runner runs the processes of steps. A step's first process has exec "".
type Runner interface {
	Create(ctx context.Context, id string, s *specs.Spec, w Streams) (Pipes, error)
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, id, exec string, p *specs.Process, w Streams) (Pipes, error)
	Kill(ctx context.Context, id, exec string, signal int) error
	Resize(ctx context.Context, id, exec string, height, width uint16) error
	CloseStdin(ctx context.Context, id, exec string) error
	// Delete forgets a process; of a step it ends all that still run.
	Delete(ctx context.Context, id, exec string) error
	// List names the steps that are known, of whatever daemon.
	List(ctx context.Context) ([]string, error)
	// Exits tells the end of each process; it is closed by Close.
	Exits() <-chan Exit
	Close() error
}

// Streams says what a process wants.
type Streams struct{ TTY, Stdin, Stdout, Stderr bool }

// Pipes are the daemon's ends; a terminal is both Stdin and Stdout.
type Pipes struct{ Stdin, Stdout, Stderr *os.File }

// Exit is the end of a process. Codes above 128 are of signals.
type Exit struct {
	ID, Exec string
	Code     int
	OOM      bool
	Time     time.Time
}

// Networks gives steps a place on the engine's networks.
type Networks interface {
	// Open makes the namespace of a step: mode is "bridge", "none" or "host",
	// hosts are further "name=address" lines.
	Open(ctx context.Context, id, mode, hostname string, hosts []string) (Sandbox, error)
	Close(ctx context.Context, id string) error
}

// Sandbox is a step's network.
type Sandbox struct {
	NetNS         string // path to join; "" for the host's
	Hosts, Resolv []byte // contents of the files in /etc
}

// Images is the engine's image library.
type Images interface {
	// Put names content of the store as an image, "" leaves it without a name.
	// Layers says which snapshot holds the tree of which chain of layers, by
	// chain id, where that is not the snapshot of the same name.
	Put(ctx context.Context, name string, d ocispec.Descriptor, layers map[string]string) error
}
