package serve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/cgroups/systemd"
)

// joinCgroup moves the keeper out of the daemon's cgroup, so that a stop of
// the daemon's service does not end it: into a scope where systemd runs, else
// into the cgroup path. leave undoes it, for the end of an empty keeper.
func joinCgroup(path string) (leave func() error, err error) {
	c := &cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{}}
	if systemd.IsRunningSystemd() {
		prefix, name, _ := strings.Cut(strings.ReplaceAll(strings.Trim(path, "/"), "/", "-"), "-")
		c = &cgroups.Cgroup{ScopePrefix: prefix, Name: name, Parent: "system.slice", Systemd: true, Resources: c.Resources}
	}
	m, err := manager.New(c)
	if err != nil {
		return nil, fmt.Errorf("cgroup of the keeper: %w", err)
	}
	if err := m.Apply(os.Getpid()); err != nil {
		return nil, fmt.Errorf("join cgroup %s: %w", path, err)
	}
	return func() error {
		if c.Systemd {
			return nil // a scope ends with its last process
		}
		var failed error
		for _, dir := range m.GetPaths() {
			// The folder above is where no other process was ever moved by us.
			up := filepath.Join(filepath.Dir(dir), "cgroup.procs")
			if err := os.WriteFile(up, []byte(strconv.Itoa(os.Getpid())), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = errors.Join(failed, err)
			}
		}
		return errors.Join(failed, m.Destroy())
	}, nil
}
