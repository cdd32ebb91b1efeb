package buildkit

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/lib/fault"
)

// packed is a context with one Dockerfile.
func packed(t *testing.T, dockerfile string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "context")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Typeflag: tar.TypeReg, Size: int64(len(dockerfile))}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, dockerfile)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAPlanHasLimits(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	two := packed(t, "FROM scratch AS a\nFROM a\nENV X=1\n")
	if got, begun, err := plan(ctx, two, build.Request{}); len(got) != 3 || !begun || err != nil {
		t.Errorf("two stages: %+v", got)
	}
	if got, begun, err := plan(ctx, packed(t, strings.Repeat("FROM scratch\n", maxStages+1)), build.Request{}); got != nil || !begun || err != nil {
		t.Errorf("%d instructions of too many stages", len(got))
	}
	cancel()
	if got, _, err := plan(ctx, two, build.Request{}); got != nil || err == nil {
		t.Errorf("a build that is over was planned: %+v", got)
	}
}

func TestAContextThatFillsTheDiskIsRefused(t *testing.T) {
	text := "FROM scratch\n"
	if got, err := dockerfileOf(packed(t, text), "Dockerfile", int64(len(text))); string(got) != text || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := dockerfileOf(packed(t, text), "Dockerfile", int64(len(text)-1)); !errors.Is(err, fault.ErrExhausted) {
		t.Error(err)
	}
}
