package task

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/proc"
)

// A pid that was given to another process, or whose container is forgotten,
// leads to nobody's namespaces.
func TestNamespacesOfContainersThatRunAreJoined(t *testing.T) {
	own := proc.Of(os.Getpid())
	path := map[string]string{"ipc": fmt.Sprintf("/proc/%d/ns/ipc", own.Pid)}
	for _, c := range []struct {
		name  string
		first map[container.ID]proc.Process
		paths map[string]string
		want  error
	}{
		{"it runs", map[container.ID]proc.Process{"a": {Pid: 1}, "b": own}, path, nil},
		{"its pid is another's", map[container.ID]proc.Process{"b": {Pid: own.Pid, Start: own.Start - 1}}, path, fault.ErrConflict},
		{"it is forgotten", nil, path, fault.ErrConflict},
		{"a mount holds it", nil, map[string]string{"network": "/run/netns/x"}, nil},
	} {
		if err := (&Runtime{first: c.first}).lasted(c.paths); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
