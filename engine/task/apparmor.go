package task

import (
	"fmt"

	"github.com/moby/profiles/apparmor"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Names of AppArmor profiles.
const (
	berthProfile  = "berth-default"  // moby's template under our name
	dockerProfile = "docker-default" // what people call that template
	unconfined    = "unconfined"
)

// profile chooses the AppArmor profile of a process; "" where the host has none.
func (r *Runtime) profile(c container.Container, privileged bool) (string, error) {
	asked := ""
	for _, o := range c.Spec.SecurityOpt {
		if v, ok := option(o, "apparmor"); ok {
			asked = v
		}
	}
	if !r.facts.appArmor {
		switch asked {
		case "", unconfined, dockerProfile, berthProfile:
			return "", nil
		}
		return "", fault.Invalidf("AppArmor is not enabled on this host, cannot apply the profile %s", asked)
	}
	if privileged && (asked == "" || !c.Spec.Privileged) {
		return unconfined, nil // an exec with privileges leaves its container's profile too
	}
	switch asked {
	case "", dockerProfile, berthProfile:
		return berthProfile, nil
	}
	return asked, nil
}

// DefaultProfile gives the AppArmor profile of processes that ask for none,
// loaded; "" where the host has no AppArmor.
func (r *Runtime) DefaultProfile() (string, error) {
	if !r.facts.appArmor {
		return "", nil
	}
	return berthProfile, r.loadProfile()
}

// loadProfile gives the kernel our profile where it has lost it or never had
// it; apparmor_parser of the host compiles it.
func (r *Runtime) loadProfile() error {
	r.parser.Lock()
	defer r.parser.Unlock()
	loaded, err := apparmor.IsLoaded(berthProfile)
	if err != nil {
		return fmt.Errorf("AppArmor profiles of the kernel: %w", err)
	}
	if loaded {
		return nil
	}
	if err := apparmor.InstallDefault(berthProfile); err != nil {
		return fmt.Errorf("AppArmor enabled on system but the %s profile could not be loaded: %w", berthProfile, err)
	}
	return nil
}
