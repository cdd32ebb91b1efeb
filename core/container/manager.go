package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/lib/fault"
)

// Committer makes an image of a container.
type Committer interface {
	Commit(ctx context.Context, c Container, o CommitOptions, config ImageConfig) (imageID string, err error)
}

// Options of a Service. All ports are needed; the rest may be zero.
type Options struct {
	Store     Store
	Runtime   Runtime
	RootFS    RootFS
	Files     Files
	Output    Output
	Networks  Networks
	Volumes   Volumes
	Images    Images
	Committer Committer
	Events    *event.Bus
	Logger    *slog.Logger
	Dir       string // where each container has a folder for its files
	Driver    string // the snapshotter's name as clients know it
	Defaults  Defaults
	Host      HostLimits
	// Deferred tells of containers whose start after the machine was down is
	// somebody else's, who knows what must run before them; nil: none.
	Deferred func(Container) bool
}

// Defaults fill what a Spec leaves open.
type Defaults struct {
	Log         LogConfig
	StopTimeout int // seconds; 0 means 10
	Init        bool
	Runtime     string
	ShmSize     int64
	Ulimits     []Ulimit

	CgroupnsMode string // "private" or "host"
}

// HostLimits say what this host can enforce; a container that asks for more
// is made with a warning, as Docker does.
type HostLimits struct {
	CPUs      int
	Memory    int64
	SwapLimit bool
	Pids      bool
	Slices    bool // cgroup parents are slices of systemd

	Swappiness, OomKillDisable, BlkioWeight, BlkioWeightDevice, CPURealtime bool
}

// Service owns all containers of an engine.
type Service struct {
	o    Options
	log  *slog.Logger
	ctx  context.Context // ends with Shutdown: all background work does
	stop context.CancelFunc
	work sync.WaitGroup

	mu     sync.RWMutex
	byID   map[ID]*entry
	byName map[string]ID // "" marks a name that is being taken
	execs  map[string]*execution
	sorted []ID                       // for prefixes
	users  map[string]map[ID]struct{} // containers by the name of a volume
}

// entry is one container in memory. The snapshot is what the world sees; op
// serialises what changes it.
type entry struct {
	snap atomic.Pointer[Container]
	op   sync.Mutex // create, start, exit, remove: one at a time

	mu       sync.Mutex // guards what follows; never held over I/O
	stream   Stream     // of the present run
	waiting  []waiter
	pending  []*attachment // registered before the start
	ended    chan struct{} // closed when the present run has ended and is recorded
	cancel   context.CancelFunc
	delay    time.Duration // of the next restart
	stopping bool          // a stop or kill was asked for
	kept     bool          // its end is a step of a restart: it is not removed by itself
	mounted  bool          // root and volumes are held
	execs    map[string]*execution
}

// New starts a service without containers; Restore finds those of before.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Defaults.StopTimeout == 0 {
		o.Defaults.StopTimeout = 10
	}
	if o.Defaults.Runtime == "" {
		o.Defaults.Runtime = "berth"
	}
	if o.Events == nil {
		o.Events = &event.Bus{}
	}
	s := &Service{o: o, log: o.Logger, byID: map[ID]*entry{}, byName: map[string]ID{}, execs: map[string]*execution{}, users: map[string]map[ID]struct{}{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Shutdown ends all work of the service. Containers go on.
func (s *Service) Shutdown() {
	s.stop()
	s.work.Wait()
}

// background runs f with the service's own context; Shutdown waits for it.
func (s *Service) background(f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		f(s.ctx)
	}()
}

// idLength of a container's id, in characters.
const idLength = 64

func newID() string {
	b := make([]byte, idLength/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// find looks a container up by id, name or the beginning of an id.
func (s *Service) find(ref string) (*entry, error) {
	name := strings.TrimPrefix(ref, "/")
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.byID[ID(ref)]; e != nil {
		return e, nil
	}
	if e := s.byID[s.byName[name]]; e != nil {
		return e, nil
	}
	if ref == "" {
		return nil, fault.Invalidf("invalid name or ID supplied: %q", ref)
	}
	i, _ := slices.BinarySearch(s.sorted, ID(ref))
	if i < len(s.sorted) && strings.HasPrefix(string(s.sorted[i]), ref) {
		if i+1 < len(s.sorted) && strings.HasPrefix(string(s.sorted[i+1]), ref) {
			return nil, fault.Invalidf("multiple IDs found with provided prefix: %s", ref)
		}
		return s.byID[s.sorted[i]], nil
	}
	return nil, fault.NotFound("container", ref)
}

func (s *Service) add(e *entry) {
	c := e.snap.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[c.ID] = e
	s.byName[c.Name] = c.ID
	i, _ := slices.BinarySearch(s.sorted, c.ID)
	s.sorted = slices.Insert(s.sorted, i, c.ID)
	for _, m := range c.Mounts { // they never change
		if m.Type == MountVolume {
			if s.users[m.Name] == nil {
				s.users[m.Name] = map[ID]struct{}{}
			}
			s.users[m.Name][c.ID] = struct{}{}
		}
	}
}

func (s *Service) forget(e *entry) {
	c := e.snap.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, c.ID)
	if s.byName[c.Name] == c.ID {
		delete(s.byName, c.Name)
	}
	if i, ok := slices.BinarySearch(s.sorted, c.ID); ok {
		s.sorted = slices.Delete(s.sorted, i, i+1)
	}
	for _, m := range c.Mounts {
		if m.Type == MountVolume {
			s.unuse(m.Name, c.ID)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, x := range e.execs {
		delete(s.execs, id)
		x.mu.Lock()
		x.dropped()
		x.mu.Unlock()
	}
}

// unuse takes a container from the users of a volume. mu is held.
func (s *Service) unuse(volume string, id ID) {
	if delete(s.users[volume], id); len(s.users[volume]) == 0 {
		delete(s.users, volume)
	}
}

// change makes a new snapshot. The callers hold op, or change what nobody else does.
func (e *entry) change(f func(c *Container)) Container {
	for {
		old := e.snap.Load()
		c := *old
		f(&c)
		if e.snap.CompareAndSwap(old, &c) {
			return c
		}
	}
}

func (s *Service) save(e *entry) error {
	return s.o.Store.PutContainer(context.WithoutCancel(s.ctx), *e.snap.Load())
}

// Get gives one container.
func (s *Service) Get(_ context.Context, id string) (Container, error) {
	e, err := s.find(id)
	if err != nil {
		return Container{}, err
	}
	return *e.snap.Load(), nil
}

// All gives every container, for those who need to know who uses what.
func (s *Service) All() []Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Container, 0, len(s.byID))
	for _, e := range s.byID {
		list = append(list, *e.snap.Load())
	}
	return list
}

// VolumeUsers gives the containers that have a volume mounted.
func (s *Service) VolumeUsers(name string) []ID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.users[name]))
}

// Size gives the bytes of the writable layer and of the whole root.
func (s *Service) Size(ctx context.Context, id string) (writable, total int64, err error) {
	e, err := s.find(id)
	if err != nil {
		return 0, 0, err
	}
	return s.o.RootFS.Usage(ctx, e.snap.Load().ID)
}

// GraphDriver gives the paths of the root's layers.
func (s *Service) GraphDriver(ctx context.Context, id string) (map[string]string, error) {
	e, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return s.o.RootFS.Layers(ctx, e.snap.Load().ID)
}

func (s *Service) folder(id ID) string { return filepath.Join(s.o.Dir, string(id)) }

func (s *Service) publish(c Container, action string, more ...string) {
	attributes := map[string]string{}
	for k, v := range c.Spec.Labels {
		attributes[k] = v
	}
	attributes["name"], attributes["image"] = c.Name, c.Spec.Image
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	s.o.Events.Publish(event.Event{Type: "container", Action: action, ID: string(c.ID), Attributes: attributes, Time: time.Now()})
}

func (c Container) isRunning() bool {
	return c.State.Status == Running || c.State.Status == Paused || c.State.Status == Restarting
}

// alive tells whether a process of it exists now.
func (c Container) alive() bool { return c.State.Status == Running || c.State.Status == Paused }

func notRunning(c Container) error {
	return fault.Conflictf("container %s is not running", c.ID)
}

func removeAll(path string) error {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
