package task

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Confine chooses a container's AppArmor profile and SELinux labels.
func (r *Runtime) Confine(c container.Container, joined []container.Container) (container.Confinement, error) {
	var held container.Confinement
	var err error
	if held.AppArmorProfile, err = r.profile(c, c.Spec.Privileged); err != nil {
		return held, err
	}
	if !r.o.SELinux {
		return held, nil
	}
	if c.ProcessLabel != "" {
		held.ProcessLabel, held.MountLabel = c.ProcessLabel, c.MountLabel
		return held, reserve(c.ProcessLabel)
	}
	options, err := labelOptions(c.Spec, joined)
	if err != nil {
		return held, err
	}
	if held.ProcessLabel, held.MountLabel, err = label.InitLabels(options); err != nil {
		return held, fault.Invalidf("--security-opt label: %w", err)
	}
	return held, nil
}

// Release gives the categories of a container's labels back.
func (r *Runtime) Release(c container.Container) {
	if r.o.SELinux && c.ProcessLabel != "" {
		selinux.ReleaseLabel(c.ProcessLabel)
	}
}

func reserve(process string) error {
	// Containers that share namespaces share their categories too.
	if err := selinux.ReserveLabelV2(process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		return fmt.Errorf("reserve label %s: %w", process, err)
	}
	return nil
}

// labelOptions are what a person asked for, or else what the namespaces of a
// container call for: none where it sees the host, the labels of another
// container that it joins, or nothing, which is labels of its own.
func labelOptions(spec container.Spec, joined []container.Container) ([]string, error) {
	var options []string
	for _, o := range spec.SecurityOpt {
		if o == "disable" {
			options = append(options, o)
		}
		if v, ok := option(o, "label"); ok {
			options = append(options, v)
		}
	}
	switch {
	case len(options) > 0:
		return options, nil
	case spec.Privileged, spec.IpcMode == "host", spec.PidMode == "host":
		return []string{"disable"}, nil
	}
	levels := map[string]bool{}
	for _, other := range joined {
		if other.ProcessLabel == "" {
			return []string{"disable"}, nil
		}
		context, err := selinux.NewContext(other.ProcessLabel)
		if err != nil {
			return nil, fmt.Errorf("label of container %s: %w", other.ID.Short(), err)
		}
		if !levels[other.ProcessLabel] && len(levels) > 0 {
			return nil, fault.Invalidf("--ipc and --pid containers SELinux labels aren't the same")
		}
		levels[other.ProcessLabel] = true
		options = nil
		for _, part := range []string{"user", "role", "type", "level"} {
			if context[part] != "" {
				options = append(options, part+":"+context[part])
			}
		}
	}
	return options, nil
}

// relabel gives the files of binds the label that their container may use.
func (r *Runtime) relabel(b container.Bundle) error {
	if !r.o.SELinux || b.Container.MountLabel == "" {
		return nil
	}
	for _, m := range b.Mounts {
		if m.Relabel == container.RelabelNone {
			continue
		}
		err := label.Relabel(m.Source, b.Container.MountLabel, m.Relabel == container.RelabelShared)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fault.Invalidf("SELinux relabeling of %s is not allowed: %w", strings.TrimSuffix(m.Source, "/"), err)
		}
	}
	return nil
}
