package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"

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

// Driver keeps volumes' content. Calls on one volume come one after another.
type Driver interface {
	Check(options map[string]string) error
	// Mountpoint is the path where Create makes a volume.
	Mountpoint(v Volume) string
	// Create is no error where the volume is there already.
	Create(v Volume) error
	// Remove takes a volume away at once and for good; Purge deletes what
	// was in it, which may take long.
	Remove(v Volume) error
	Purge(v Volume) error
	// Mount and Unmount act for the first and the last user of a volume.
	// Doing what is done already is no error.
	Mount(v Volume) error
	Unmount(v Volume) error
	// Fill gives a mounted volume that is empty its first content, all of it
	// or nothing, also where the daemon is killed in it. write asks for the
	// folder to write into once it has something.
	Fill(v Volume, write func(into func() (dir string, err error)) error) error
	// Size counts a volume's bytes; -1 where the driver cannot know.
	Size(ctx context.Context, v Volume) (int64, error)
	// Find tells what is there: whole volumes, and those whose Remove was
	// the last thing that happened to them.
	Find(ctx context.Context) (found, removed []Volume, err error)
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
	names nameLocks // orders what happens to one volume

	mu     sync.Mutex
	users  func(name string) []container.ID
	byName map[string]Volume
	held   map[string]map[container.ID]int // who has it mounted or is being made with it, how often
}

const (
	defaultDriver  = "local"
	anonymousLabel = "com.docker.volume.anonymous" // clients look for it
	maxName        = 255                           // bytes: it is a folder's name
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// New finds the volumes of before. What was cut short is finished, be it made
// or removed; volumes that only their driver knows (copied in from elsewhere) are taken in.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{o: o, users: func(string) []container.ID { return nil }, byName: map[string]Volume{}, held: map[string]map[container.ID]int{}}
	all, err := o.Store.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		s.byName[v.Name] = v
	}
	for name, d := range o.Drivers {
		if err := s.restore(ctx, name, d); err != nil {
			return nil, fmt.Errorf("find volumes of driver %s: %w", name, err)
		}
	}
	return s, nil
}

func (s *Service) restore(ctx context.Context, driver string, d Driver) error {
	found, removed, err := d.Find(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, v := range found {
		there[v.Name] = true
	}
	for _, v := range removed {
		if old, known := s.byName[v.Name]; known && old.Driver == driver && !there[v.Name] {
			if err := s.o.Store.DeleteVolume(ctx, v.Name); err != nil {
				return err
			}
			delete(s.byName, v.Name)
		}
		if err := d.Purge(v); err != nil {
			s.o.Logger.Warn("volume's files not deleted", "volume", v.Name, "error", err)
		}
	}
	for name, v := range s.byName {
		if v.Driver == driver && !there[name] {
			if err := d.Create(v); err != nil {
				s.o.Logger.Warn("volume not made", "volume", name, "error", err)
			}
		}
	}
	for _, v := range found {
		if _, known := s.byName[v.Name]; known || !validName.MatchString(v.Name) {
			continue
		}
		v.Driver, v.Size, v.RefCount = driver, -1, -1
		if err := s.o.Store.PutVolume(ctx, v); err != nil {
			return err
		}
		s.byName[v.Name] = v
		s.o.Logger.Info("volume taken in", "volume", v.Name)
	}
	return nil
}

// SetUsers tells the service who asks which containers use a volume.
func (s *Service) SetUsers(users func(name string) []container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = users
}

// usersOf asks without holding mu: the answer may take other locks.
func (s *Service) usersOf(name string) []container.ID {
	s.mu.Lock()
	users := s.users
	s.mu.Unlock()
	return users(name)
}

// Restore notes that running containers hold their volumes.
func (s *Service) Restore(running []container.Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range running {
		for _, m := range c.Mounts {
			if m.Type == container.MountVolume {
				s.hold(m.Name, c.ID, 1)
			}
		}
	}
}

// hold counts a user. mu is held.
func (s *Service) hold(name string, user container.ID, n int) {
	if s.held[name] == nil {
		s.held[name] = map[container.ID]int{}
	}
	if s.held[name][user] += n; s.held[name][user] <= 0 {
		delete(s.held[name], user)
	}
	if len(s.held[name]) == 0 {
		delete(s.held, name)
	}
}

func (s *Service) holders(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held[name])
}

func (s *Service) driver(name string) (Driver, error) {
	d := s.o.Drivers[name]
	if d == nil {
		return nil, fault.NotFoundf("error looking up volume plugin %s: plugin %q not found", name, name)
	}
	return d, nil
}

func (s *Service) find(name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.byName[name]
	if !ok {
		return v, &fault.Error{Class: fault.ErrNotFound, Noun: "volume", ID: name, Msg: "get " + name + ": no such volume"}
	}
	return v, nil
}

// Ensure gives a volume to a container, making it where it is not there. user
// holds it until Unmount: nobody removes it before the container is known.
func (s *Service) Ensure(ctx context.Context, name, driver string, options, labels map[string]string, anonymous bool, user container.ID) (container.Volume, error) {
	o := CreateOptions{Name: name, Driver: driver, Options: options, Labels: labels}
	if anonymous {
		o.Name = ""
	} else if name == "" {
		return container.Volume{}, fault.Invalidf("volume name is too short, names should be at least two alphanumeric characters")
	}
	v, err := s.create(ctx, o, user)
	return container.Volume{Name: v.Name, Driver: v.Driver, Path: v.Mountpoint}, err
}

// Hold keeps a volume that is there from being removed, until Unmount.
func (s *Service) Hold(name string, user container.ID) error {
	defer s.names.lock(name)()
	if _, err := s.find(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(name, user, 1)
	return nil
}

// Mount gives the path of a volume while user holds it.
func (s *Service) Mount(_ context.Context, name string, user container.ID) (string, error) {
	defer s.names.lock(name)()
	v, _, err := s.mount(name, user)
	return v.Mountpoint, err
}

// mount does it; the volume's name is locked.
func (s *Service) mount(name string, user container.ID) (Volume, Driver, error) {
	v, err := s.find(name)
	if err != nil {
		return v, nil, err
	}
	d, err := s.driver(v.Driver)
	if err != nil {
		return v, nil, err
	}
	// Also for later users: someone may have unmounted it by hand.
	if err := d.Mount(v); err != nil {
		return v, nil, err
	}
	s.mu.Lock()
	s.hold(name, user, 1)
	s.mu.Unlock()
	return v, d, nil
}

// Fill gives an empty volume its first content: all that write writes, or
// nothing. Others wait for it.
func (s *Service) Fill(_ context.Context, name string, user container.ID, write func(into func() (dir string, err error)) error) error {
	defer s.names.lock(name)()
	v, d, err := s.mount(name, user)
	if err != nil {
		return err
	}
	return errors.Join(d.Fill(v, write), s.unmount(name, user))
}

// Unmount gives one Mount, Ensure or Hold back.
func (s *Service) Unmount(_ context.Context, name string, user container.ID) error {
	defer s.names.lock(name)()
	return s.unmount(name, user)
}

// unmount does it; the volume's name is locked.
func (s *Service) unmount(name string, user container.ID) error {
	v, err := s.find(name)
	if err != nil {
		return nil // gone, and with it its mount
	}
	s.mu.Lock()
	had := s.held[name][user]
	if had > 0 {
		s.hold(name, user, -1)
	}
	s.mu.Unlock()
	// Without a holder it is unmounted also where nobody had it: a daemon
	// of before may have mounted it.
	if had > 1 || s.holders(name) > 0 {
		return nil
	}
	d, err := s.driver(v.Driver)
	if err != nil {
		return err
	}
	return d.Unmount(v)
}

// Remove takes a volume away that no container uses. What was in it is
// deleted last: killed in it, the next daemon goes on.
func (s *Service) Remove(ctx context.Context, name string) error {
	unlock := s.names.lock(name)
	v, d, err := s.remove(ctx, name)
	unlock()
	if err != nil {
		return err
	}
	s.publish("destroy", v)
	if err := d.Purge(v); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func (s *Service) remove(ctx context.Context, name string) (Volume, Driver, error) {
	v, err := s.find(name)
	if err != nil {
		return v, nil, err
	}
	if users := s.usersOf(name); len(users) > 0 {
		ids := make([]string, len(users))
		for i, u := range users {
			ids[i] = string(u)
		}
		return v, nil, fault.Conflictf("remove %s: volume is in use - [%s]", name, strings.Join(ids, ", "))
	}
	if s.holders(name) > 0 {
		return v, nil, fault.Conflictf("remove %s: volume is in use", name)
	}
	d, err := s.driver(v.Driver)
	if err != nil {
		return v, nil, wrap("remove", name, err)
	}
	if err := d.Remove(v); err != nil {
		return v, nil, wrap("remove", name, err)
	}
	if err := s.o.Store.DeleteVolume(ctx, name); err != nil {
		return v, nil, err
	}
	s.mu.Lock()
	delete(s.byName, name)
	s.mu.Unlock()
	return v, d, nil
}

// wrap puts docker's "operation name: " before a driver's error, and keeps its class.
func wrap(operation, name string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return &fault.Error{Class: f.Class, Msg: operation + " " + name + ": " + err.Error()}
	}
	return fmt.Errorf("%s %s: %w", operation, name, err)
}
