package compose

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/test/kit"
)

// The disk fills up while an application is brought up: the cause is told, what
// ran before goes on, and the next up converges once there is room.
func TestAFullDiskInTheMiddleOfAnUp(t *testing.T) {
	root := kit.SmallDisk(t)
	w := own(t)
	// Its files go into a new volume: more than there will be room for.
	big := make([]byte, 4<<20)
	if _, err := rand.Read(big); err != nil {
		t.Fatal(err)
	}
	if err := w.e.API.Load(context.Background(), "big:test", kit.Config{Cmd: []string{"/none"}}, []kit.File{{Path: "data/big", Body: big, Mode: 0o644}}); err != nil {
		t.Fatal(err)
	}
	one := "services:\n  a: " + sleeper + "\n"
	w.mustUp(one, app.Policy{})
	before := w.ids()["a-1"]

	filler := filepath.Join(root, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		t.Fatal(err)
	}
	// Room to begin, not to end.
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-2<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	all := one + "  b: " + sleeper + "\n  c: " + strings.Replace(sleeper, "{", "{depends_on: [d], ", 1) +
		"\n  d: {image: \"big:test\", command: [\"/bin/sleep\", \"1000\"], stop_signal: KILL, pull_policy: never, volumes: [\"data:/data\", \"/bin/busybox:/bin/sleep:ro\"]}\nvolumes: {data: {}}\n"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lines, _, err := w.up(all, app.Policy{})
	if err == nil {
		t.Fatal("an up succeeded on a full disk")
	}
	if text := strings.ToLower(err.Error()); !strings.Contains(text, "no space left") && !strings.Contains(text, "full") {
		t.Errorf("the cause is not told: %v\n%s", err, show(lines))
	}
	if out, err := w.e.Docker(ctx, "inspect", "-f", "{{.State.Status}} {{.Id}}", w.name+"-a-1"); err != nil || out != "running "+before {
		t.Errorf("what ran before: %q, %v", out, err)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := kit.Until(30*time.Second, func() error {
		_, _, err := w.up(all, app.Policy{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.want("a-1 running", "b-1 running", "c-1 running", "d-1 running")
	if w.ids()["a-1"] != before {
		t.Error("what ran before was made anew")
	}
	if steps := w.plan(all, app.Policy{}); len(steps) != 0 {
		t.Errorf("still to do: %q", steps)
	}
}
