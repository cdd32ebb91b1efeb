// Package remote fetches Compose files from other machines, on behalf of the
// command line: Git repositories by the program git, OCI artifacts from
// registries. What was fetched is kept in the user's cache by its commit or
// digest, so it is fetched once; nothing of it is run.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"

	"github.com/berth-project/berth/lib/fault"
)

// Git fetches references to Git repositories, in the forms docker build takes:
// https://host/repo.git#branch:folder, git@host:repo.git, github.com/a/b.
type Git struct {
	cache string
	known map[string]string // reference → the folder of its Compose file
}

// NewGit keeps repositories below cache ("" for the user's own).
func NewGit(cache string) *Git { return &Git{cache: cache, known: map[string]string{}} }

// Accept says whether the reference is one to a repository.
func (g *Git) Accept(reference string) bool {
	_, _, err := dfgitutil.ParseGitRef(reference)
	return err == nil
}

// Dir is the folder that relative paths in the file start from.
func (g *Git) Dir(reference string) string {
	if dir, ok := g.known[reference]; ok {
		return dir
	}
	return filepath.Dir(reference) // the local path that Load gave
}

var commit = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// Load fetches the repository's commit and returns the path of the Compose
// file in it.
func (g *Git) Load(ctx context.Context, reference string) (string, error) {
	if err := enabled("COMPOSE_EXPERIMENTAL_GIT_REMOTE"); err != nil {
		return "", err
	}
	ref, _, err := dfgitutil.ParseGitRef(reference)
	if err != nil {
		return "", fault.Invalidf("%s: %w", reference, err)
	}
	if strings.HasPrefix(ref.Remote, "-") || strings.HasPrefix(ref.Ref, "-") {
		return "", fault.Invalidf("%s: neither repository nor branch begins with -", reference)
	}
	id, err := resolve(ctx, ref)
	if err != nil {
		return "", err
	}
	if ref.Checksum != "" && !strings.HasPrefix(id, ref.Checksum) {
		return "", fault.Invalidf("%s: the commit is %s, not %s", reference, id, ref.Checksum)
	}
	root, err := folder(g.cache, "git", id)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(root); err != nil {
		if err := fill(root, func(dir string) error { return checkout(ctx, dir, ref.Remote, id) }); err != nil {
			return "", fmt.Errorf("fetch %s: %w", reference, err)
		}
	}
	file, err := inside(root, ref.SubDir)
	if err != nil {
		return "", fault.Invalidf("%s: %w", reference, err)
	}
	g.known[reference] = filepath.Dir(file)
	return file, nil
}

// resolve gives the commit that a branch or tag is now.
func resolve(ctx context.Context, ref *dfgitutil.GitRef) (string, error) {
	name := ref.Ref
	if commit.MatchString(name) {
		return name, nil
	}
	if name == "" {
		name = "HEAD"
	}
	out, err := git(ctx, "", "ls-remote", "--exit-code", "--", ref.Remote, name)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return "", fault.NotFoundf("the repository %s has no %s", ref.Remote, name)
	}
	if err != nil {
		return "", fault.Unavailablef("the repository %s does not answer: %w", ref.Remote, err)
	}
	id, _, _ := strings.Cut(strings.TrimSpace(out), "\t")
	if !commit.MatchString(id) {
		return "", fault.Invalidf("the repository %s gave no commit for %s", ref.Remote, name)
	}
	return id, nil
}

func checkout(ctx context.Context, dir, repository, id string) error {
	for _, args := range [][]string{
		{"init", "-q"}, {"fetch", "-q", "--depth=1", "--", repository, id}, {"checkout", "-q", "--detach", "FETCH_HEAD"},
	} {
		if _, err := git(ctx, dir, args...); err != nil {
			return err
		}
	}
	return nil
}

// git runs the program without questions, hooks or transports that run others.
func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0")
	if os.Getenv("GIT_SSH") == "" && os.Getenv("GIT_SSH_COMMAND") == "" {
		cmd.Env = append(cmd.Env, "GIT_SSH_COMMAND=ssh -o ControlMaster=no -o BatchMode=yes")
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// names a Compose file has in a folder that was fetched.
var names = []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"}

// inside finds the Compose file at a path of a fetched tree; neither path nor
// symbolic links may lead out of it.
func inside(root, path string) (string, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer r.Close()
	path = filepath.Clean("./" + path)
	info, err := r.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return filepath.Join(root, path), nil
	}
	for _, n := range names {
		if info, err := r.Stat(filepath.Join(path, n)); err == nil && !info.IsDir() {
			return filepath.Join(root, path, n), nil
		}
	}
	return "", fmt.Errorf("there is no Compose file (%s)", strings.Join(names, ", "))
}

// folder is where a fetched thing is kept.
func folder(cache, kind, id string) (string, error) {
	if cache == "" {
		own, err := os.UserCacheDir()
		if err != nil {
			return "", fault.Internalf("find the user's cache: %w", err)
		}
		cache = filepath.Join(own, "berth", "compose")
	}
	return filepath.Join(cache, kind, id), nil
}

// fill makes a folder whole or not at all: two at once do no harm.
func fill(dir string, make func(dir string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := make(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, dir); err != nil {
		if _, there := os.Stat(dir); there == nil {
			return nil // another was faster
		}
		return err
	}
	return nil
}

func enabled(variable string) error {
	v := os.Getenv(variable)
	if v == "" {
		return nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return fault.Invalidf("%s=%s: true or false is needed", variable, v)
	}
	if !on {
		return fault.Invalidf("references to other machines are switched off by %s", variable)
	}
	return nil
}
