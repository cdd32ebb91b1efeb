package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/lib/fault"
)

// memory is a Store and a Driver that keep everything here.
type memory struct {
	mu      sync.Mutex
	stored  map[string]Volume
	there   map[string]bool
	trash   map[string]bool
	mounted map[string]bool
	filled  map[string]bool // one after another: the service orders what happens to a volume
	full    error           // of the store
	broken  error           // of the driver
}

func newMemory() *memory {
	return &memory{stored: map[string]Volume{}, there: map[string]bool{}, trash: map[string]bool{}, mounted: map[string]bool{}, filled: map[string]bool{}}
}

func (m *memory) PutVolume(_ context.Context, v Volume) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full == nil {
		m.stored[v.Name] = v
	}
	return m.full
}

func (m *memory) DeleteVolume(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.stored, name)
	return nil
}

func (m *memory) Volumes(context.Context) ([]Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.stored)), nil
}

func (m *memory) Check(o map[string]string) error {
	if o["bad"] != "" {
		return fault.Invalidf("invalid option: %q", "bad")
	}
	return nil
}

func (m *memory) set(at map[string]bool, name string, on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if on {
		at[name] = true
	} else {
		delete(at, name)
	}
	return nil
}

func (m *memory) Mountpoint(v Volume) string { return "/" + v.Name }
func (m *memory) Create(v Volume) error {
	if m.broken != nil {
		return m.broken
	}
	return m.set(m.there, v.Name, true)
}
func (m *memory) Remove(v Volume) error {
	return errors.Join(m.set(m.there, v.Name, false), m.set(m.trash, v.Name, true))
}
func (m *memory) Purge(v Volume) error   { return m.set(m.trash, v.Name, false) }
func (m *memory) Mount(v Volume) error   { return m.set(m.mounted, v.Name, true) }
func (m *memory) Unmount(v Volume) error { return m.set(m.mounted, v.Name, false) }
func (m *memory) Fill(v Volume, write func(into func() (string, error)) error) error {
	if !m.mounted[v.Name] {
		return errors.New("not mounted")
	}
	if m.filled[v.Name] {
		return nil
	}
	if err := write(func() (string, error) { return "/" + v.Name, nil }); err != nil {
		return err
	}
	return m.set(m.filled, v.Name, true)
}
func (m *memory) Size(_ context.Context, v Volume) (int64, error) { return int64(len(v.Name)), nil }
func (m *memory) Find(context.Context) (found, removed []Volume, err error) {
	for n := range m.there {
		found = append(found, Volume{Name: n, Mountpoint: "/" + n})
	}
	for n := range m.trash {
		removed = append(removed, Volume{Name: n})
	}
	return found, removed, nil
}

type world struct {
	*Service
	m     *memory
	bus   *event.Bus
	users map[string][]container.ID
}

func newWorld(t *testing.T, m *memory) world {
	t.Helper()
	w := world{m: m, bus: &event.Bus{}, users: map[string][]container.ID{}}
	var err error
	w.Service, err = New(t.Context(), Options{Store: m, Drivers: map[string]Driver{"local": m, "other": newMemory()}, Events: w.bus})
	if err != nil {
		t.Fatal(err)
	}
	w.SetUsers(func(name string) []container.ID { return w.users[name] })
	return w
}

func (w world) make(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := w.Create(t.Context(), CreateOptions{Name: n, Labels: map[string]string{"name": n}}); err != nil {
			t.Fatal(err)
		}
	}
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func names(list []Volume) (n []string) {
	for _, v := range list {
		n = append(n, v.Name)
	}
	return n
}

func TestCreationIsRefusedInDockersWords(t *testing.T) {
	for _, tt := range []struct {
		o     CreateOptions
		want  string
		class error
	}{
		{CreateOptions{Name: "taken"}, "", nil},
		{CreateOptions{Name: "taken", Driver: "local"}, "", nil},
		{CreateOptions{Name: "taken", Driver: "other"}, "create taken: volume name must be unique: driver 'local' already has volume 'taken'", fault.ErrConflict},
		{CreateOptions{Name: "x"}, "create x: volume name is too short, names should be at least two alphanumeric characters", fault.ErrInvalid},
		{CreateOptions{Name: "a/b"}, `create a/b: "a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, fault.ErrInvalid},
		{CreateOptions{Name: "..", Driver: "local"}, `create ..: ".." includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, fault.ErrInvalid},
		{CreateOptions{Name: "ab", Driver: "nope"}, `create ab: error looking up volume plugin nope: plugin "nope" not found`, fault.ErrNotFound},
		{CreateOptions{Name: "ab", Options: map[string]string{"bad": "1"}}, `create ab: invalid option: "bad"`, fault.ErrInvalid},
	} {
		w := newWorld(t, newMemory())
		w.make(t, "taken")
		_, err := w.Create(t.Context(), tt.o)
		if d := cmp.Diff(tt.want, said(err)); d != "" || tt.class != nil && !errors.Is(err, tt.class) {
			t.Errorf("%s: %v", d, err)
		}
	}
}

func TestAnAnonymousVolumeGetsANameAndALabel(t *testing.T) {
	w := newWorld(t, newMemory())
	v, err := w.Create(t.Context(), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Name) != 64 || strings.Trim(v.Name, "0123456789abcdef") != "" {
		t.Errorf("name %q", v.Name)
	}
	if _, ok := v.Labels["com.docker.volume.anonymous"]; !ok || !v.Anonymous {
		t.Errorf("%+v", v)
	}
}

func TestAFailedCreationLeavesNothing(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m)
	m.broken = errors.New("no inodes")
	if _, err := w.Create(t.Context(), CreateOptions{Name: "ab"}); said(err) != "create ab: no inodes" {
		t.Errorf("%v", err)
	}
	m.full = errors.New("disk full")
	if _, err := w.Create(t.Context(), CreateOptions{Name: "ab"}); said(err) != "create ab: disk full" {
		t.Errorf("%v", err)
	}
	if len(m.there)+len(m.trash)+len(m.stored) != 0 {
		t.Errorf("%+v", m)
	}
	if _, err := w.Get(t.Context(), "ab"); said(err) != "get ab: no such volume" || !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestAVolumeInUseStays(t *testing.T) {
	w := newWorld(t, newMemory())
	w.make(t, "ab", "held")
	w.users["ab"] = []container.ID{"c1", "c2"}
	err := w.Remove(t.Context(), "ab")
	if said(err) != "remove ab: volume is in use - [c1, c2]" || !errors.Is(err, fault.ErrConflict) {
		t.Errorf("%v", err)
	}
	if _, err := w.Mount(t.Context(), "held", "c3"); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), "held"); !errors.Is(err, fault.ErrConflict) {
		t.Errorf("%v", err)
	}
	if err := (Volumes{w.Service}).Remove(t.Context(), "nope", true); err != nil {
		t.Errorf("forced: %v", err)
	}
	if err := (Volumes{w.Service}).Remove(t.Context(), "nope", false); said(err) != "get nope: no such volume" {
		t.Errorf("%v", err)
	}
}

func TestTheLastUserUnmounts(t *testing.T) {
	w := newWorld(t, newMemory())
	w.make(t, "ab")
	for _, user := range []container.ID{"c1", "c1", "c2"} {
		if path, err := w.Mount(t.Context(), "ab", user); path != "/ab" || err != nil {
			t.Fatal(path, err)
		}
	}
	for i, user := range []container.ID{"c1", "c2", "c1"} {
		if !w.m.mounted["ab"] {
			t.Errorf("unmounted before the %d. unmount", i+1)
		}
		if err := w.Unmount(t.Context(), "ab", user); err != nil {
			t.Fatal(err)
		}
	}
	if w.m.mounted["ab"] {
		t.Error("still mounted")
	}
}

func TestADaemonThatComesBackKnowsItsVolumes(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m)
	w.make(t, "kept", "half-removed", "half-made")
	m.mounted["kept"] = true
	_ = m.set(m.there, "half-made", false)     // killed before its driver made it
	_ = m.Remove(Volume{Name: "half-removed"}) // killed before the store forgot it
	_ = m.set(m.there, "copied-in", true)
	w = newWorld(t, m)
	list, err := w.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"copied-in", "half-made", "kept"}, names(list)); d != "" {
		t.Error(d)
	}
	if len(m.trash) != 0 || len(m.stored) != 3 || !m.there["half-made"] {
		t.Errorf("%+v", m)
	}
	running := container.Container{ID: "c1", Mounts: []container.MountPoint{{Type: container.MountVolume, Name: "kept"}}}
	w.Restore([]container.Container{running})
	if err := w.Unmount(t.Context(), "kept", "c2"); err != nil || !m.mounted["kept"] {
		t.Errorf("unmounted by a stranger: %v", err)
	}
	if err := w.Unmount(t.Context(), "kept", "c1"); err != nil || m.mounted["kept"] {
		t.Errorf("still mounted: %v", err)
	}
}

func TestFiltersSelect(t *testing.T) {
	w := newWorld(t, newMemory())
	w.make(t, "app-data", "app-logs", "used")
	w.users["used"] = []container.ID{"c1"}
	for name, tt := range map[string]struct {
		f    filter.Args
		want []string
		err  string
	}{
		"nothing":           {nil, []string{"app-data", "app-logs", "used"}, ""},
		"a part of a name":  {filter.Args{"name": {"app"}}, []string{"app-data", "app-logs"}, ""},
		"a pattern":         {filter.Args{"name": {"^app.*s$"}}, []string{"app-logs"}, ""},
		"a label":           {filter.Args{"label": {"name=used"}}, []string{"used"}, ""},
		"two labels":        {filter.Args{"label": {"name=used", "nope"}}, nil, ""},
		"a driver":          {filter.Args{"driver": {"other"}}, nil, ""},
		"what dangles":      {filter.Args{"dangling": {"true"}}, []string{"app-data", "app-logs"}, ""},
		"what does not":     {filter.Args{"dangling": {"0"}}, []string{"used"}, ""},
		"a wrong filter":    {filter.Args{"color": {"red"}}, nil, "invalid filter 'color'"},
		"what dangles, not": {filter.Args{"dangling": {"maybe"}}, nil, "invalid filter 'dangling=maybe'"},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := w.List(t.Context(), tt.f)
			if d := cmp.Diff(tt.want, names(list)) + cmp.Diff(tt.err, said(err)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPruneTakesWhatNobodyUses(t *testing.T) {
	for name, tt := range map[string]struct {
		f    filter.Args
		want []string
	}{
		"anonymous ones":       {nil, nil},
		"all":                  {filter.Args{"all": {"1"}}, []string{"free", "keep"}},
		"all with a label":     {filter.Args{"all": {"1"}, "label": {"name=free"}}, []string{"free"}},
		"all without a label":  {filter.Args{"all": {"1"}, "label!": {"name=keep"}}, []string{"free"}},
		"anonymous, other one": {filter.Args{"label": {"nope"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newMemory())
			w.make(t, "free", "keep", "used")
			w.users["used"] = []container.ID{"c1"}
			v, err := w.Create(t.Context(), CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			_, events := w.bus.Subscribe(t.Context(), time.Time{})
			removed, reclaimed, err := w.Prune(t.Context(), tt.f)
			if err != nil {
				t.Fatal(err)
			}
			want, bytes := slices.Clone(tt.want), int64(0)
			if len(tt.f["label"]) == 0 {
				want = append(want, v.Name)
			}
			for _, n := range want {
				bytes += int64(len(n))
			}
			slices.Sort(want)
			if d := cmp.Diff(want, removed); d != "" || reclaimed != bytes {
				t.Errorf("%d of %d bytes: %s", reclaimed, bytes, d)
			}
			var last event.Event
			for range len(removed) + 1 {
				last = <-events
			}
			if last.Action != "prune" || last.Attributes["reclaimed"] == "" {
				t.Errorf("%+v", last)
			}
		})
	}
}

func TestManyCreateOneVolumeTogether(t *testing.T) {
	w := newWorld(t, newMemory())
	var work sync.WaitGroup
	for range 32 {
		work.Go(func() {
			v, err := w.Ensure(t.Context(), "shared", "", nil, nil, false, "c")
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := w.Mount(t.Context(), v.Name, "c"); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	past, _ := w.bus.Subscribe(t.Context(), time.Unix(1, 0))
	created := 0
	for _, e := range past {
		if e.Action == "create" {
			created++
		}
	}
	if created != 1 || w.held["shared"]["c"] != 64 {
		t.Errorf("created %d times, held %d times", created, w.held["shared"]["c"])
	}
}

// A container that is being made is not yet known as a user of its volumes.
func TestAVolumeIsKeptWhileItsContainerIsMade(t *testing.T) {
	w := newWorld(t, newMemory())
	if _, err := w.Ensure(t.Context(), "fresh", "", nil, nil, false, "c"); err != nil {
		t.Fatal(err)
	}
	if err := w.Hold("fresh", "other"); err != nil {
		t.Fatal(err)
	}
	if err := w.Hold("none", "other"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("hold of none: %v", err)
	}
	for _, user := range []container.ID{"c", "other"} {
		if removed, _, err := w.Prune(t.Context(), filter.Args{"all": {"true"}}); err != nil || len(removed) > 0 {
			t.Fatalf("pruned %v, %v", removed, err)
		}
		if err := w.Service.Remove(t.Context(), "fresh"); !errors.Is(err, fault.ErrConflict) {
			t.Errorf("removed: %v", err)
		}
		if err := w.Unmount(t.Context(), "fresh", user); err != nil {
			t.Fatal(err)
		}
	}
	if removed, _, err := w.Prune(t.Context(), filter.Args{"all": {"true"}}); err != nil || len(removed) != 1 {
		t.Errorf("pruned %v, %v", removed, err)
	}
}

func TestManyFillOneVolumeOnce(t *testing.T) {
	w := newWorld(t, newMemory())
	if _, err := w.Ensure(t.Context(), "fresh", "", nil, nil, false, "c"); err != nil {
		t.Fatal(err)
	}
	written := 0 // without a lock: only one may write
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := w.Fill(t.Context(), "fresh", "c", func(into func() (string, error)) error {
				dir, err := into()
				if dir != "/fresh" {
					t.Errorf("into %q", dir)
				}
				written++
				return err
			}); err != nil {
				t.Error(err)
			}
			if !w.m.filled["fresh"] {
				t.Error("a filling was over before it was done")
			}
		})
	}
	all.Wait()
	if written != 1 || w.held["fresh"]["c"] != 1 {
		t.Errorf("written %d times, held %d times", written, w.held["fresh"]["c"])
	}
}
