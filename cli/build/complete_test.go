package build

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStagesAreCompleted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "Dockerfile")
	text := "FROM --platform=$BUILDPLATFORM golang AS build\r\nRUN echo FROM x AS no\n# FROM x AS no\nfrom debian as Test \nFROM scratch\nCOPY --from=build / /\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"build", "Test"}, stagesOf(file)); d != "" {
		t.Error(d)
	}
	if got := stagesOf(filepath.Dir(file)); got != nil {
		t.Errorf("a folder has stages %v", got)
	}
}
