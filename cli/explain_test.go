package cli

import (
	"errors"
	"strings"
	"testing"
)

func TestAnErrorSaysWhatToDoNext(t *testing.T) {
	t.Setenv("LC_ALL", "C")
	const request = `build failed: redis: failed to do request: Head "https://registry-1.docker.io/v2/library/NAME/manifests/7": dial tcp: connect: network is unreachable`
	for text, next := range map[string]string{
		strings.ReplaceAll(request, "NAME", "redis"):                               "berth library build redis",
		strings.ReplaceAll(request, "NAME", "mysql"):                               "berth library build mysql",
		strings.ReplaceAll(request, "NAME", "unheard-of"):                          "",
		strings.ReplaceAll(request, "NAME", "%2e"):                                 "",
		"pull access denied for redis, repository does not exist":                  "",
		"Cannot connect to the Docker daemon at unix:///x. Is the daemon running?": "sudo berthd",
	} {
		got := explain(errors.New(text))
		added, ok := strings.CutPrefix(got, text)
		if !ok || (added == "") != (next == "") || !strings.Contains(added, next) {
			t.Errorf("%s: %q is added, should be %q", text, added, next)
		}
	}
}
