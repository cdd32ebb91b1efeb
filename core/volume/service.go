package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/lib/fault"
)

// Store remembers volumes. A Put is on disk when it returns.
type Store interface {
	PutVolume(ctx context.Context, v Volume) error
	DeleteVolume(ctx context.Context, name string) error
	Volumes(ctx context.Context) ([]Volume, error)
}

// Driver keeps volumes' content.
type Driver interface {
	Check(options map[string]string) error
	Create(v Volume) (mountpoint string, err error)
	Remove(v Volume) error
	// Mount and Unmount act for the first and the last user of a volume.
	Mount(v Volume) error
	Unmount(v Volume) error
	Size(ctx context.Context, v Volume) (int64, error)
}

// Options of a Service.
type Options struct {
	Store   Store
	Drivers map[string]Driver // "local" is the default
	Events  *event.Bus
	Logger  *slog.Logger
}

// Service owns all volumes of an engine.
type Service struct {
	o     Options
	users func(name string) []container.ID

	mu     sync.Mutex
	byName map[string]Volume
	held   map[string]map[container.ID]int // who has it mounted, how often
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// New finds the volumes of before.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{o: o, users: func(string) []container.ID { return nil }, byName: map[string]Volume{}, held: map[string]map[container.ID]int{}}
	all, err := o.Store.Volumes(ctx)
	for _, v := range all {
		s.byName[v.Name] = v
	}
	return s, err
}

// SetUsers tells the service who asks which containers use a volume.
func (s *Service) SetUsers(users func(name string) []container.ID) { s.users = users }

// Restore notes that a running container holds its volumes.
func (s *Service) Restore(running []container.Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range running {
		for _, m := range c.Mounts {
			if m.Type == container.MountVolume {
				s.hold(m.Name, c.ID)
			}
		}
	}
}

func (s *Service) hold(name string, user container.ID) (first bool) {
	if s.held[name] == nil {
		s.held[name] = map[container.ID]int{}
	}
	first = len(s.held[name]) == 0
	s.held[name][user]++
	return first
}

func (s *Service) driver(name string) (Driver, string, error) {
	if name == "" {
		name = "local"
	}
	d := s.o.Drivers[name]
	if d == nil {
		return nil, "", fault.NotFoundf("error looking up volume plugin %s: plugin %q not found", name, name)
	}
	return d, name, nil
}

// Create makes a volume; one that is there with the same driver is given back.
func (s *Service) Create(ctx context.Context, o CreateOptions) (Volume, error) {
	anonymous := o.Name == ""
	if anonymous {
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails
		o.Name = hex.EncodeToString(b)
	}
	return s.create(ctx, o, anonymous)
}

func (s *Service) create(ctx context.Context, o CreateOptions, anonymous bool) (Volume, error) {
	if !validName.MatchString(o.Name) {
		return Volume{}, fault.Invalidf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", o.Name, o.Name)
	}
	if len(o.Name) > 255 {
		return Volume{}, fault.Invalidf("create %s: volume name is too long", o.Name[:32])
	}
	d, driver, err := s.driver(o.Driver)
	if err != nil {
		return Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.byName[o.Name]; ok {
		if o.Driver != "" && v.Driver != driver {
			return Volume{}, fault.Conflictf("create %s: conflict: volume name must be unique: a volume with driver %q is there already", o.Name, v.Driver)
		}
		return v, nil
	}
	if err := d.Check(o.Options); err != nil {
		return Volume{}, err
	}
	v := Volume{Name: o.Name, Driver: driver, Created: time.Now(), Labels: o.Labels, Options: o.Options, Anonymous: anonymous, Size: -1, RefCount: -1}
	if anonymous {
		v.Labels = maps.Clone(v.Labels)
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels["com.docker.volume.anonymous"] = ""
	}
	if v.Mountpoint, err = d.Create(v); err != nil {
		return Volume{}, err
	}
	if err := s.o.Store.PutVolume(ctx, v); err != nil {
		return Volume{}, errors.Join(err, d.Remove(v))
	}
	s.byName[v.Name] = v
	s.publish("create", v)
	return v, nil
}

func (s *Service) publish(action string, v Volume, more ...string) {
	if s.o.Events == nil {
		return
	}
	attributes := map[string]string{"driver": v.Driver}
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	s.o.Events.Publish(event.Event{Type: "volume", Action: action, ID: v.Name, Attributes: attributes, Time: time.Now()})
}

// Ensure gives a volume to a container, making it where it is not there.
func (s *Service) Ensure(ctx context.Context, name, driver string, options, labels map[string]string, anonymous bool) (container.Volume, error) {
	o := CreateOptions{Name: name, Driver: driver, Options: options, Labels: labels}
	var v Volume
	var err error
	if anonymous {
		v, err = s.Create(ctx, CreateOptions{Driver: driver, Options: options, Labels: labels})
	} else {
		v, err = s.create(ctx, o, false)
	}
	return container.Volume{Name: v.Name, Driver: v.Driver, Path: v.Mountpoint}, err
}

func (s *Service) find(name string) (Volume, error) {
	v, ok := s.byName[name]
	if !ok {
		return v, &fault.Error{Class: fault.ErrNotFound, Noun: "volume", ID: name, Msg: "get " + name + ": no such volume"}
	}
	return v, nil
}

// Mount gives the path of a volume while user holds it.
func (s *Service) Mount(_ context.Context, name string, user container.ID) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(name)
	if err != nil {
		return "", err
	}
	d, _, err := s.driver(v.Driver)
	if err != nil {
		return "", err
	}
	if len(s.held[name]) == 0 {
		if err := d.Mount(v); err != nil {
			return "", err
		}
	}
	s.hold(name, user)
	s.publish("mount", v, "container", string(user), "destination", "", "read/write", "true")
	return v.Mountpoint, nil
}

// Unmount gives one Mount back.
func (s *Service) Unmount(_ context.Context, name string, user container.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(name)
	if err != nil || s.held[name][user] == 0 {
		return nil
	}
	if s.held[name][user]--; s.held[name][user] > 0 {
		return nil
	}
	delete(s.held[name], user)
	s.publish("unmount", v, "container", string(user))
	if len(s.held[name]) > 0 {
		return nil
	}
	d, _, err := s.driver(v.Driver)
	if err != nil {
		return err
	}
	return d.Unmount(v)
}

// Remove takes a volume away that no container uses.
func (s *Service) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	v, err := s.find(name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if users := s.users(name); len(users) > 0 {
		ids := make([]string, len(users))
		for i, u := range users {
			ids[i] = string(u)
		}
		return fault.Conflictf("remove %s: volume is in use - [%s]", name, strings.Join(ids, ", "))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(name); err != nil {
		return err
	}
	d, _, err := s.driver(v.Driver)
	if err != nil {
		return err
	}
	if err := d.Remove(v); err != nil {
		return err
	}
	if err := s.o.Store.DeleteVolume(ctx, name); err != nil {
		return err
	}
	delete(s.byName, name)
	delete(s.held, name)
	s.publish("destroy", v)
	return nil
}
