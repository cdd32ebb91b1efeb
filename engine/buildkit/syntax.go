package buildkit

import (
	"context"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	bk "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
)

// dockerfileMinor is the newest version of the Dockerfile format that the
// linked frontend knows, the 28 of docker/dockerfile:1.28.
func dockerfileMinor() int {
	parts := strings.Split(dockerfileversion.Version(), ".")
	if len(parts) < 2 || parts[0] != "1" {
		return 0
	}
	n, _ := strconv.Atoi(parts[1])
	return n
}

// syntax serves "# syntax=docker/dockerfile:1" with the frontend inside this
// program: the same code, and no registry is needed. Any other is fetched.
type syntax struct{ builtin, remote frontend.Frontend }

func (s syntax) Solve(ctx context.Context, b frontend.FrontendLLBBridge, x bk.Executor, o map[string]string, in map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if known(o["source"]) {
		return s.builtin.Solve(ctx, b, x, o, in, sid, sm)
	}
	return s.remote.Solve(ctx, b, x, o, in, sid, sm)
}

// known tells whether a frontend image is what is linked here.
func known(source string) bool {
	named, err := reference.ParseNormalizedNamed(source)
	if err != nil || named.Name() != "docker.io/docker/dockerfile" {
		return false
	}
	if _, pinned := named.(reference.Digested); pinned {
		return false
	}
	t, ok := reference.TagNameOnly(named).(reference.Tagged)
	if !ok {
		return false
	}
	if t.Tag() == "latest" || t.Tag() == "1" {
		return true
	}
	rest, ok := strings.CutPrefix(t.Tag(), "1.")
	if !ok {
		return false
	}
	for i, part := range strings.Split(rest, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || i == 0 && n > dockerfileMinor() || i > 1 {
			return false
		}
	}
	return true
}
