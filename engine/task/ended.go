package task

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	shim "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"

	"github.com/berth-project/berth/core/container"
)

// askLimit bounds the question to one shim.
const askLimit = 5 * time.Second

// Ended asks the shims below a folder of containerd's bundles which of their
// containers have ended. It must be asked before containerd starts, which
// throws away shims without processes and with them the exit codes.
func Ended(ctx context.Context, bundles string, log *slog.Logger) map[container.ID]container.Exit {
	ended := map[container.ID]container.Exit{}
	entries, err := os.ReadDir(bundles)
	if err != nil {
		return ended // nothing ever ran
	}
	for _, e := range entries {
		state, err := ask(ctx, filepath.Join(bundles, e.Name()), e.Name())
		if err != nil {
			log.Debug("shim does not answer", "container", e.Name(), "error", err)
			continue
		}
		if state.Status == task.Status_STOPPED {
			id := container.ID(e.Name())
			ended[id] = container.Exit{ContainerID: id, Pid: int(state.Pid), Code: int(state.ExitStatus), Time: state.ExitedAt.AsTime()}
		}
	}
	return ended
}

// ask connects to one shim by what containerd wrote of it.
func ask(ctx context.Context, bundle, id string) (*shim.StateResponse, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err != nil {
		return nil, err
	}
	var where struct{ Address, Protocol string }
	if err := json.Unmarshal(b, &where); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(where.Address, "unix://"))
	if err != nil {
		return nil, err
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	return shim.NewTTRPCTaskClient(c).State(ctx, &shim.StateRequest{ID: id})
}
