package compose

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/test/kit"
)

// What another client takes away is not brought back by the next daemon; what
// is still ours is kept.
func TestWhatOthersRemoveStaysRemovedAfterARestart(t *testing.T) {
	w := own(t)
	ctx := context.Background()
	file := "services:\n  a: " + sleeper + "\n  b: " + sleeper + "\n"
	w.mustUp(file, app.Policy{})
	if _, err := w.e.Docker(ctx, "rm", "-f", w.ids()["a-1"]); err != nil {
		t.Fatal(err)
	}
	left := func() error {
		d, err := w.c.Inspect(ctx, w.name)
		if err == nil && d.Drift != nil {
			err = errors.New("the daemon still wants it back")
		}
		return err
	}
	if err := kit.Until(30*time.Second, left); err != nil {
		t.Fatal(err)
	}
	w.e.Kill()
	w.e.API.Close()
	w.c.Close()
	if err := w.e.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.want("b-1 running")

	// An up takes it again.
	w.mustUp(file, app.Policy{})
	w.want("a-1 running", "b-1 running")
	for _, id := range w.ids() {
		if _, err := w.e.Docker(ctx, "rm", "-f", id); err != nil {
			t.Fatal(err)
		}
	}
	if err := kit.Until(30*time.Second, func() error {
		d, err := w.c.Inspect(ctx, w.name)
		if err == nil && d.Managed {
			err = errors.New("the application is still wanted")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.e.Kill()
	w.e.API.Close()
	w.c.Close()
	if err := w.e.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.want()
	if list, err := w.c.History(ctx, w.name, false); err != nil || len(list) == 0 {
		t.Errorf("history is %v, %v", list, err)
	}
}
