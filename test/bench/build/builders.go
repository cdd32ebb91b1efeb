package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/test/kit"
)

// berth is the builder that the others are compared with.
const berth = "berth"

// base image of all builds.
const base = "busybox:test"

// builder builds a folder's Dockerfile.
type builder struct {
	name    string
	title   string // with its version
	against string // name of the builder of Berth that is compared with it; empty for Berth's
	// samples at most of each measurement; 0 is as many as asked for.
	samples int
	build   func(ctx context.Context, dir string, args []string) error
}

// begin starts the builders that are here, and says which are not.
func begin(ctx context.Context, alone bool) (list []builder, end func(), err error) {
	var ends []func()
	end = func() {
		for _, f := range ends {
			f()
		}
	}
	config, err := client()
	if err != nil {
		return nil, end, err
	}
	for _, peer := range []bool{false, true} {
		if peer && alone {
			continue
		}
		name := map[bool]string{false: berth, true: "docker.io"}[peer]
		e, err := kit.Start(ctx, "bench-"+name, peer)
		if errors.Is(err, kit.ErrMissing) && peer {
			fmt.Println("skipped:", err)
			continue
		}
		if err != nil {
			return nil, end, err
		}
		ends = append(ends, func() { _ = e.Stop() })
		if err := e.LoadBusybox(ctx); err != nil {
			return nil, end, err
		}
		var v struct{ Version string }
		if err := e.API.Call(ctx, "GET", "/version", nil, &v); err != nil {
			return nil, end, err
		}
		host := "DOCKER_HOST=unix://" + e.Socket
		title := map[bool]string{false: "Berth", true: "docker.io " + v.Version}[peer]
		buildx := builder{name: name + " by buildx", title: title + ", by buildx",
			build: docker([]string{"docker", "build", "--provenance=false"}, host, "DOCKER_CONFIG="+config)}
		own := builder{name: name, title: title}
		if !peer {
			own.build = docker([]string{filepath.Join(os.Getenv("BERTH_TEST_BIN"), "berth"), "build"}, host)
		} else {
			own.against, buildx.against = list[0].name, list[1].name
			own.build, err = peerClient(ctx, host)
			if err != nil {
				fmt.Println("skipped:", err)
				list = append(list, buildx)
				continue
			}
		}
		list = append(list, own, buildx)
	}
	if alone {
		return list, end, nil
	}
	if b, err := buildah(ctx); err != nil {
		fmt.Println("skipped:", err)
	} else {
		list = append(list, b)
	}
	return list, end, nil
}

// client is a folder of configuration with buildx as the client's plugin.
func client() (string, error) {
	if _, err := exec.LookPath("docker"); err != nil {
		return "", errors.New("docker is not installed: make test-packages")
	}
	plugin := filepath.Join(os.Getenv("BERTH_TEST_BIN"), "tools", "docker-buildx")
	if _, err := os.Stat(plugin); err != nil {
		return "", errors.New("buildx is not there: make test-tools")
	}
	dir := filepath.Join(kit.Root(), "docker", "cli-plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return filepath.Dir(dir), os.Symlink(plugin, filepath.Join(dir, "docker-buildx"))
}

// docker builds with a client's build command. No engine makes attestations:
// the older knows none.
func docker(build []string, env ...string) func(context.Context, string, []string) error {
	return func(ctx context.Context, dir string, args []string) error {
		line := append(slices.Clone(build), "-t", "bench")
		for _, a := range args {
			line = append(line, "--build-arg", a)
		}
		return command(ctx, append(env, "BUILDKIT_PROGRESS=plain"), append(line, dir)...)
	}
}

// peerClient builds with docker.io's own client, which until version 23 spoke
// to BuildKit by itself.
func peerClient(ctx context.Context, host string) (func(context.Context, string, []string) error, error) {
	const path = "/usr/bin/docker"
	version, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("docker.io's own client: %w", err)
	}
	if !strings.HasPrefix(string(version), "Docker version 20.") {
		return nil, fmt.Errorf("docker.io's own client: it builds by buildx: %s", strings.TrimSpace(string(version)))
	}
	return docker([]string{path, "build"}, host, "DOCKER_BUILDKIT=1"), nil
}

// buildah builds with `buildah build --layers`, in storage of its own, with
// steps on the host's network: Debian's package brings no other.
func buildah(ctx context.Context) (builder, error) {
	if _, err := exec.LookPath("buildah"); err != nil {
		return builder{}, errors.New("buildah is not installed (apt-get install buildah)")
	}
	dir := filepath.Join(kit.Root(), "buildah")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return builder{}, err
	}
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644); err != nil {
		return builder{}, err
	}
	var image bytes.Buffer
	files, err := kit.BusyboxFiles()
	if err != nil {
		return builder{}, err
	}
	if err := kit.Archive(&image, base, kit.Config{Cmd: []string{"sh"}, Env: []string{kit.SearchPath}}, files); err != nil {
		return builder{}, err
	}
	archive := filepath.Join(dir, "base.tar")
	if err := os.WriteFile(archive, image.Bytes(), 0o644); err != nil {
		return builder{}, err
	}
	program := []string{"buildah", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay"}
	if err := command(ctx, nil, append(program, "pull", "--signature-policy", policy, "docker-archive:"+archive)...); err != nil {
		return builder{}, fmt.Errorf("buildah does not work here: %w", err)
	}
	if err := command(ctx, nil, append(program, "tag", "localhost/"+base, "docker.io/library/"+base)...); err != nil && !strings.Contains(err.Error(), "locating image") {
		return builder{}, fmt.Errorf("buildah does not work here: %w", err)
	}
	version, err := exec.CommandContext(ctx, "buildah", "--version").Output()
	if err != nil {
		return builder{}, err
	}
	title := "buildah"
	if f := strings.Fields(string(version)); len(f) > 2 {
		title += " " + f[2]
	}
	return builder{name: "buildah", title: title, against: berth, samples: 3, build: func(ctx context.Context, dir string, args []string) error {
		line := append(program, "build", "--layers", "--pull-never", "--network", "host", "--signature-policy", policy, "-t", "bench")
		for _, a := range args {
			line = append(line, "--build-arg", a)
		}
		return command(ctx, nil, append(line, dir)...)
	}}, nil
}

func command(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}
