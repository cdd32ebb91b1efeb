package compose

import (
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

func TestADockerfileIsNamedFromItsContext(t *testing.T) {
	here := t.TempDir()
	for context, want := range map[string]string{
		here:                              here + "/sub/Dockerfile",
		"github.com/user/repo":            "sub/Dockerfile",
		"git@example.org:user/repo.git":   "sub/Dockerfile",
		"ssh://git@example.org/repo.git":  "sub/Dockerfile",
		"https://example.org/archive.tgz": "sub/Dockerfile",
	} {
		if got := dockerfilePath(&types.BuildConfig{Context: context, Dockerfile: "sub/Dockerfile"}); got != want {
			t.Errorf("%s: %s, should be %s", context, got, want)
		}
	}
}
