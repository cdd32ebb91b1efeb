package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/lib/fault"
)

// Create makes a volume; one that is there with the same driver is given
// back as it is. Without a name it is anonymous and gets 64 hexadecimal digits.
func (s *Service) Create(ctx context.Context, o CreateOptions) (Volume, error) {
	return s.create(ctx, o, "")
}

// create does it; a user holds the volume from then on.
func (s *Service) create(ctx context.Context, o CreateOptions, user container.ID) (v Volume, err error) {
	anonymous := o.Name == ""
	if anonymous {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Name = hex.EncodeToString(b[:])
	}
	if err := checkName(o.Name); err != nil {
		return Volume{}, err
	}
	defer s.names.lock(o.Name)()
	defer func() {
		if err == nil && user != "" {
			s.mu.Lock()
			s.hold(o.Name, user, 1)
			s.mu.Unlock()
		}
	}()
	if v, err := s.find(o.Name); err == nil {
		if o.Driver != "" && v.Driver != o.Driver {
			return Volume{}, fault.Conflictf("create %s: volume name must be unique: driver '%s' already has volume '%s'", o.Name, v.Driver, o.Name)
		}
		return v, nil
	}
	v = Volume{
		Name: o.Name, Driver: o.Driver, Created: time.Now(), Labels: maps.Clone(o.Labels), Options: maps.Clone(o.Options),
		Anonymous: anonymous, Size: -1, RefCount: -1,
	}
	if v.Driver == "" {
		v.Driver = defaultDriver
	}
	if anonymous {
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels[anonymousLabel] = ""
	}
	if err := s.make(ctx, &v); err != nil {
		return Volume{}, wrap("create", o.Name, err)
	}
	s.publish("create", v)
	return v, nil
}

func (s *Service) make(ctx context.Context, v *Volume) error {
	d, err := s.driver(v.Driver)
	if err != nil {
		return err
	}
	if err := d.Check(v.Options); err != nil {
		return err
	}
	// Known before it is there: a kill in between leaves none that has lost its labels.
	v.Mountpoint = d.Mountpoint(*v)
	if err := s.o.Store.PutVolume(ctx, *v); err != nil {
		return err
	}
	if err := d.Create(*v); err != nil {
		return errors.Join(err, s.o.Store.DeleteVolume(context.WithoutCancel(ctx), v.Name))
	}
	s.mu.Lock()
	s.byName[v.Name] = *v
	s.mu.Unlock()
	return nil
}

func checkName(name string) error {
	shown := name[:min(len(name), maxName)]
	switch {
	case len(name) == 1:
		return fault.Invalidf("create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	case !validName.MatchString(name):
		return fault.Invalidf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", shown, shown)
	case len(name) > maxName:
		return fault.Invalidf("create %s: volume name is longer than %d characters", shown, maxName)
	}
	return nil
}

func (s *Service) publish(action string, v Volume, more ...string) {
	if s.o.Events == nil {
		return
	}
	attributes := map[string]string{}
	if v.Driver != "" {
		attributes["driver"] = v.Driver
	}
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	s.o.Events.Publish(event.Event{Type: "volume", Action: action, ID: v.Name, Attributes: attributes, Time: time.Now()})
}

// nameLocks is a lock for each name that someone is busy with.
type nameLocks struct {
	mu sync.Mutex
	m  map[string]*nameLock
}

type nameLock struct {
	sync.Mutex
	n int // who has it or waits for it
}

// lock waits for a name and gives what unlocks it.
func (n *nameLocks) lock(name string) (unlock func()) {
	n.mu.Lock()
	if n.m == nil {
		n.m = map[string]*nameLock{}
	}
	l := n.m[name]
	if l == nil {
		l = &nameLock{}
		n.m[name] = l
	}
	l.n++
	n.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		n.mu.Lock()
		defer n.mu.Unlock()
		if l.n--; l.n == 0 {
			delete(n.m, name)
		}
	}
}
