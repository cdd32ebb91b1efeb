package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

func TestARevisionIsFoundByItsNumber(t *testing.T) {
	ctx := context.Background()
	s, err := Open(ctx, filepath.Join(t.TempDir(), "berth.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, n := range []int{1, 12, 3} {
		for _, name := range []string{"shop", "shop-a", "sho"} {
			if err := s.PutRevision(ctx, name, app.Revision{Number: n, Comment: fmt.Sprint(name, n)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r, err := s.Revision(ctx, "shop", 12); err != nil || r.Comment != "shop12" {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := s.Revision(ctx, "shop", 2); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("what is not there gives %v", err)
	}
	if list, err := s.RevisionNumbers(ctx, "shop"); err != nil || !cmp.Equal(list, []int{1, 3, 12}) {
		t.Errorf("%v %v", list, err)
	}
}

func TestSeveralContainersArePutTogether(t *testing.T) {
	ctx := context.Background()
	s, err := Open(ctx, filepath.Join(t.TempDir(), "berth.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := []container.Container{{ID: "a"}, {ID: "b", Name: "two"}}
	if err := errors.Join(s.PutContainers(ctx, want...), s.PutContainers(ctx)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Containers(ctx)
	if err != nil || len(got) != 2 || got[1].Name != "two" {
		t.Errorf("%+v %v", got, err)
	}
}

func TestWhatWasPutIsFoundAgain(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "berth.db")
	s, err := Open(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := container.Container{ID: "a", Name: "one", Spec: container.Spec{Labels: map[string]string{"k": "v"}}}
	for _, c := range []container.Container{{ID: "a", Name: "zero"}, {ID: "b"}, want} {
		if err := s.PutContainer(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.NoteContainer(ctx, container.Container{ID: "a", Name: "one", Spec: want.Spec}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteContainer(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, path, nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Containers(ctx)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v %v", got, err)
	}
	if d := cmp.Diff(want.Spec.Labels, got[0].Spec.Labels); d != "" || got[0].Name != "one" {
		t.Fatal(got[0].Name, d)
	}
}

// The child writes and says each id that was acknowledged, until it is killed.
func TestWhatWasAcknowledgedSurvivesAKill(t *testing.T) {
	ctx := context.Background()
	if path := os.Getenv("STORE_TEST_CHILD"); path != "" {
		s, err := Open(ctx, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			id := container.ID(fmt.Sprintf("%08d", i))
			if err := s.PutContainer(ctx, container.Container{ID: id}); err != nil {
				t.Fatal(err)
			}
			fmt.Println(id)
		}
	}
	path := filepath.Join(t.TempDir(), "berth.db")
	child := exec.Command(os.Args[0], "-test.run=^TestWhatWasAcknowledgedSurvivesAKill$")
	child.Env = append(os.Environ(), "STORE_TEST_CHILD="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]bool{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acknowledged[lines.Text()] = true
		if len(acknowledged) == 50 {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = child.Wait()
	s, err := Open(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got {
		delete(acknowledged, string(c.ID))
	}
	if len(acknowledged) > 0 {
		t.Errorf("lost after an acknowledgement: %v", acknowledged)
	}
}
