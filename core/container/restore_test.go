package container

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/lib/fault"
)

// machine is what a daemon finds: its database, running processes, volumes.
// What it is not asked for is not there.
type machine struct {
	Runtime
	RootFS
	Output
	Networks
	Volumes

	mu      sync.Mutex
	stored  map[ID]Container
	tasks   []Task
	volumes map[string]bool
}

func (m *machine) PutContainer(_ context.Context, c Container) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored[c.ID] = c
	return nil
}

func (m *machine) PutContainers(ctx context.Context, list ...Container) error {
	for _, c := range list {
		_ = m.PutContainer(ctx, c)
	}
	return nil
}

func (m *machine) NoteContainer(ctx context.Context, c Container) error {
	return m.PutContainer(ctx, c)
}

func (m *machine) DeleteContainer(_ context.Context, id ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.stored, id)
	return nil
}

func (m *machine) Containers(context.Context) ([]Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.stored)), nil
}

// parts are the machine's, by port: names of methods meet otherwise.
type (
	runtimeOf  struct{ *machine }
	rootsOf    struct{ RootFS }
	outputOf   struct{ Output }
	networksOf struct{ Networks }
	volumesOf  struct {
		Volumes
		m *machine
	}
)

func (r runtimeOf) Tasks(context.Context) ([]Task, error) { return r.tasks, nil }
func (r runtimeOf) Pipes(context.Context, ID, string) (Pipes, error) {
	return Pipes{}, fault.NotFound("pipes", "")
}
func (r runtimeOf) Delete(context.Context, ID, string) error { return nil }
func (r runtimeOf) Release(Container)                        {}
func (r runtimeOf) Exits(context.Context) <-chan Exit {
	none := make(chan Exit)
	close(none)
	return none
}
func (rootsOf) Sweep(context.Context, func(ID) bool) error    { return nil }
func (rootsOf) Remove(context.Context, ID) error              { return nil }
func (rootsOf) Unmount(context.Context, ID) error             { return nil }
func (outputOf) Forget(Container) error                       { return nil }
func (networksOf) Restore(context.Context, []Container) error { return nil }
func (networksOf) Close(context.Context, Container) error     { return nil }
func (v volumesOf) Restore([]Container)                       {}
func (v volumesOf) Unmount(context.Context, string, ID) error { return nil }
func (v volumesOf) Remove(_ context.Context, name string) error {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	if !v.m.volumes[name] {
		return fault.NotFound("volume", name)
	}
	delete(v.m.volumes, name)
	return nil
}

// restored is a service on a machine.
func restored(t *testing.T, m *machine) *Service {
	t.Helper()
	s := New(Options{Store: m, Runtime: runtimeOf{m}, RootFS: rootsOf{}, Output: outputOf{}, Networks: networksOf{}, Volumes: volumesOf{m: m}, Dir: t.TempDir()})
	t.Cleanup(s.Shutdown)
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// A daemon may be killed anywhere between the end of a container and its
// removal: the next one goes on.
func TestRemovalsThatWereCutShortAreFinished(t *testing.T) {
	anonymous := func(c Container, volume string) Container {
		c.Mounts = []MountPoint{{Type: MountVolume, Name: volume, Anonymous: true}, {Type: MountVolume, Name: "named"}}
		return c
	}
	rm := Spec{AutoRemove: true}
	ended := State{Status: Exited, StartedAt: time.Unix(1, 0), FinishedAt: time.Unix(2, 0)}
	m := &machine{stored: map[ID]Container{}, volumes: map[string]bool{"named": true}, tasks: []Task{{ID: "runs", Pid: 1, Status: Running}, {ID: "begun", Pid: 2, Status: Created}}}
	for _, c := range []Container{
		{ID: "ended", Spec: rm, State: ended},
		{ID: "stays", State: ended},
		{ID: "failed", Spec: rm, State: State{Status: Created, Error: "no such program"}},
		{ID: "begun", Spec: rm, State: State{Status: Created, SandboxID: "begun"}},
		{ID: "starting", Spec: rm, State: State{Status: Created, SandboxID: "starting"}},
		{ID: "made", Spec: rm, State: State{Status: Created}},
		{ID: "runs", Spec: rm, State: State{Status: Running, StartedAt: time.Unix(1, 0)}},
		{ID: "going", State: State{Status: Removing, VolumesToo: true}},
		{ID: "going without", State: State{Status: Removing}},
	} {
		c.Name = string(c.ID)
		m.stored[c.ID] = anonymous(c, "of "+c.Name)
		m.volumes["of "+c.Name] = true
	}
	restored(t, m)
	if d := cmp.Diff([]ID{"made", "runs", "stays"}, slices.Sorted(maps.Keys(m.stored))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"named", "of going without", "of made", "of runs", "of stays"}, slices.Sorted(maps.Keys(m.volumes))); d != "" {
		t.Error(d)
	}
}

// Exec makes a process that ends as the test says.
func (r runtimeOf) Exec(context.Context, ID, string, Container, ExecSpec) (int, Pipes, error) {
	return 7, Pipes{}, nil
}

// A container that lives for months does not remember all that ever ran in it.
func TestExecsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{stored: map[ID]Container{"c": {ID: "c", Name: "c", State: State{Status: Running, StartedAt: time.Now()}}}, tasks: []Task{{ID: "c", Pid: 1, Status: Running}}}
		s := restored(t, m)
		run := func(start bool) string {
			id, err := s.ExecCreate(t.Context(), "c", ExecSpec{Cmd: []string{"true"}})
			if err != nil {
				t.Fatal(err)
			}
			if start {
				if _, err := s.ExecStart(t.Context(), id, true, nil); err != nil {
					t.Fatal(err)
				}
			}
			return id
		}
		known := func(id string) bool {
			_, err := s.execution(id)
			if err != nil && !errors.Is(err, fault.ErrNotFound) {
				t.Fatal(err)
			}
			return err == nil
		}
		ended, asked, runs, never := run(true), run(true), run(true), run(false)
		for _, id := range []string{ended, asked} {
			s.execExited(Exit{ContainerID: "c", ExecID: id, Code: 3})
		}
		time.Sleep(execMemory - time.Second)
		for range 2 {
			if x, err := s.ExecGet(t.Context(), asked); err != nil || x.ExitCode == nil || *x.ExitCode != 3 {
				t.Fatalf("%+v, %v", x, err)
			}
			time.Sleep(execMemory - time.Second)
			synctest.Wait()
		}
		if known(ended) || !known(asked) || !known(runs) || !known(never) {
			t.Errorf("ended %v, asked %v, runs %v, never %v", known(ended), known(asked), known(runs), known(never))
		}
		time.Sleep(execUnused)
		synctest.Wait()
		if known(asked) || !known(runs) || known(never) {
			t.Errorf("asked %v, runs %v, never %v", known(asked), known(runs), known(never))
		}
		if e, _ := s.find("c"); len(e.execs) != 1 {
			t.Errorf("%d execs are left", len(e.execs))
		}
		s.execExited(Exit{ContainerID: "c", ExecID: runs})
		time.Sleep(execMemory)
		synctest.Wait()
		if known(runs) {
			t.Error("an exec that ran long is not forgotten")
		}
		s.Shutdown()
	})
}
