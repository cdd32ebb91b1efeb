package crash

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/test/kit"
)

// answer is how long a request may take on a full disk.
const answer = 20 * time.Second

// TestAFullDisk fills the file system of the data root: what needs room fails
// with a reason in bounded time, what runs goes on, and all works again once
// there is room, without a restart.
func TestAFullDisk(t *testing.T) {
	root := kit.SmallDisk(t)
	e := engine(t)
	ctx := context.Background()
	run := func(name string) error {
		ctx, cancel := context.WithTimeout(ctx, answer)
		defer cancel()
		body := map[string]any{"Image": "busybox:test", "Cmd": []string{"sleep", "100000"}}
		if err := e.API.Call(ctx, "POST", "/containers/create?name="+name, body, nil); err != nil {
			return err
		}
		return e.API.Call(ctx, "POST", "/containers/"+name+"/start", nil, nil)
	}
	for _, name := range []string{"stays", "goes"} {
		if err := run(name); err != nil {
			t.Fatal(err)
		}
	}
	fill := filepath.Join(root, "filler")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for n := len(block); n > 0; n /= 2 { // to the last byte
		_, _ = f.Write(block[:n])
	}
	_ = f.Close()

	for _, name := range []string{"none", "none2", "none3"} {
		err := run(name)
		if err == nil {
			t.Errorf("%s was made on a full disk", name)
		} else if text := strings.ToLower(err.Error()); !strings.Contains(text, "no space left") && !strings.Contains(text, "full") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if i, err := inspect(t, e, "stays"); err != nil || i.State.Status != "running" {
		t.Errorf("stays: %+v, %v", i, err)
	}
	if out, err := e.Docker(ctx, "exec", "stays", "echo", "still"); err != nil || out != "still" {
		t.Errorf("exec: %q, %v", out, err)
	}
	short, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	r, err := e.API.Do(short, "POST", "/containers/goes/kill", "", nil)
	if err != nil {
		t.Error(err)
	} else {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	if err := e.Ping(ctx); err != nil {
		t.Error(err)
	}

	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := kit.Until(limit, func() error { return run("again" + time.Now().Format("150405.000000")) }); err != nil {
		t.Fatal(err)
	}
	if i, err := inspect(t, e, "goes"); err != nil || i.State.Status != "exited" {
		t.Errorf("goes: %+v, %v", i, err)
	}
	// What could not be made has left nothing, and the daemon that comes next agrees.
	e.Kill()
	if err := e.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if i, err := inspect(t, e, "stays"); err != nil || i.State.Status != "running" {
		t.Errorf("stays: %+v, %v", i, err)
	}
	if _, err := inspect(t, e, "none"); err == nil {
		t.Error("what could not be made is there")
	}
	empty(t, e)
}
