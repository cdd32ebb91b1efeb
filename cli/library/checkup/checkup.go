// Package checkup examines an image of the library in an engine: eight checks
// that every image must pass. The engine is any that answers the Docker API.
package checkup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/berth-project/berth/format/recipe"
)

// Limits of a check.
const (
	startLimit = 3 * time.Minute
	poll       = 200 * time.Millisecond
	maxOutput  = 1 << 20
	maxScan    = 256 << 10 // of a file that may hold a secret, in bytes
	grace      = 10        // seconds
)

// Verdicts of a check.
const (
	OK   = "ok"
	Bad  = "failed"
	None = "none" // there is nothing to check
)

// Check is one result.
type Check struct {
	Name    string `json:"name"`
	Verdict string `json:"verdict"`
	Detail  string `json:"detail,omitempty"`
}

// Names are the eight checks in order.
var Names = []string{"small", "secrets", "starts", "user", "health", "logs", "stop", "volume"}

// Examine runs the checks on an image that the engine has. Only what keeps the
// checks from being made is an error. What it makes for a while has the labels.
func Examine(ctx context.Context, engine client.APIClient, r *recipe.Recipe, id string, labels map[string]string) ([]Check, error) {
	x := &exam{e: engine, r: r, image: id, c: withDefaults(r), labels: labels}
	defer x.clean(context.WithoutCancel(ctx))
	image, err := engine.ImageInspect(ctx, id)
	if err != nil {
		return nil, err
	}
	x.size(image.Size)
	if err := x.secrets(ctx); err != nil {
		return nil, err
	}
	if err := x.prepare(ctx, image); err != nil {
		return nil, err
	}
	x.starts(ctx)
	if x.main == "" {
		for _, name := range Names[3:] {
			if name == "logs" && len(x.c.OneShot) > 0 {
				x.say(name, x.matches(x.output), "the output lacks "+x.c.Log)
				continue
			}
			x.add(name, None, "no service runs")
		}
		return x.list, nil
	}
	x.user(ctx)
	x.health(ctx, image)
	x.logs(ctx)
	x.volume(ctx) // stops the container on its way
	return x.list, nil
}

type exam struct {
	e     client.APIClient
	r     *recipe.Recipe
	c     recipe.Check
	image string
	list  []Check

	labels map[string]string

	main    string // container of the service
	output  string // of one-shot commands
	failed  bool   // the service did not come up
	others  []string
	network string
	volumes []string // name:path
}

// withDefaults gives images that serve nothing a process to look at.
func withDefaults(r *recipe.Recipe) recipe.Check {
	c := r.Manifest.Check
	if len(c.Ready) == 0 && len(c.Args) == 0 && c.Log == "" {
		c.Args = []string{"sh", "-c", "trap 'exit 0' TERM; echo started; while :; do sleep 1 & wait $!; done"}
		c.Ready, c.Log = []string{"true"}, "started"
		c.Volumes = append(c.Volumes, "/data")
		c.Write, c.Read = "echo kept >/data/berth", "grep -qx kept /data/berth"
	}
	if c.Stop == 0 {
		c.Stop = grace
	}
	return c
}

func (x *exam) add(name, verdict, detail string) {
	x.list = append(x.list, Check{name, verdict, detail})
}

func (x *exam) say(name string, good bool, detail string) {
	if good {
		x.add(name, OK, "")
	} else {
		x.add(name, Bad, detail)
	}
}

func (x *exam) size(bytes int64) {
	x.say("small", bytes <= int64(x.r.Manifest.Limit)*1e6, fmt.Sprintf("%.0f MB, the limit is %d MB", float64(bytes)/1e6, x.r.Manifest.Limit))
}

var secret = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`)

// secrets reads the image's files where keys, passwords and ids are kept.
func (x *exam) secrets(ctx context.Context) error {
	c, err := x.e.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: x.image, Entrypoint: []string{"none"}, Labels: x.labels}})
	if err != nil {
		return err
	}
	defer x.remove(context.WithoutCancel(ctx), c.ID)
	r, err := x.e.ContainerExport(ctx, c.ID, client.ContainerExportOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	found := ""
	for t := tar.NewReader(r); found == ""; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		folder, _, _ := strings.Cut(name, "/")
		if h.Typeflag != tar.TypeReg || h.Size > maxScan || !slices.Contains([]string{"etc", "root", "home", "var", "srv", "opt", "data"}, folder) {
			continue
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		found = secretIn(name, b)
	}
	x.say("secrets", found == "", found)
	return nil
}

func secretIn(name string, b []byte) string {
	switch {
	case secret.Match(b):
		return "/" + name + " is a private key"
	case name == "etc/machine-id" && len(bytes.TrimSpace(b)) > 0, name == "var/lib/dbus/machine-id":
		return "/" + name + " is the id of one machine"
	case path.Base(name) == ".erlang.cookie":
		return "/" + name + " is a cookie"
	case name == "etc/shadow":
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Split(line, ":"); len(f) > 1 && strings.HasPrefix(f[1], "$") {
				return "/etc/shadow has a password of " + f[0]
			}
		}
	}
	return ""
}

// prepare makes volumes, a network where one is needed, and what runs beside.
func (x *exam) prepare(ctx context.Context, image client.ImageInspectResult) error {
	folders := slices.Clone(x.c.Volumes)
	if image.Config != nil {
		for v := range image.Config.Volumes {
			folders = append(folders, v)
		}
	}
	slices.Sort(folders)
	for _, f := range folders {
		v, err := x.e.VolumeCreate(ctx, client.VolumeCreateOptions{Labels: x.labels})
		if err != nil {
			return err
		}
		x.volumes = append(x.volumes, v.Volume.Name+":"+f)
	}
	if len(x.c.With) == 0 {
		return nil
	}
	x.network = "berth-library-" + x.r.Name
	if _, err := x.e.NetworkCreate(ctx, x.network, client.NetworkCreateOptions{Labels: x.labels}); err != nil {
		return err
	}
	for _, w := range x.c.With {
		c, err := x.e.ContainerCreate(ctx, client.ContainerCreateOptions{
			Config:     &container.Config{Image: w.Image, Env: w.Env, Labels: x.labels},
			HostConfig: &container.HostConfig{NetworkMode: container.NetworkMode(x.network)},
			NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
				x.network: {Aliases: []string{w.Alias}},
			}},
		})
		if err != nil {
			return err
		}
		x.others = append(x.others, c.ID)
		if _, err := x.e.ContainerStart(ctx, c.ID, client.ContainerStartOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// create makes a container of the image with the volumes.
func (x *exam) create(ctx context.Context, args []string) (string, error) {
	h := &container.HostConfig{Tmpfs: map[string]string{}}
	for _, v := range x.volumes {
		name, at, _ := strings.Cut(v, ":")
		h.Mounts = append(h.Mounts, mount.Mount{Type: mount.TypeVolume, Source: name, Target: at})
	}
	for _, t := range x.c.Tmpfs {
		h.Tmpfs[t] = ""
	}
	if x.network != "" {
		h.NetworkMode = container.NetworkMode(x.network)
	}
	c, err := x.e.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: x.image, Cmd: args, Env: x.c.Env, Labels: x.labels}, HostConfig: h})
	return c.ID, err
}

func (x *exam) start(ctx context.Context) error {
	id, err := x.create(ctx, x.c.Args)
	if err != nil {
		return err
	}
	x.main = id
	_, err = x.e.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return err
}

// starts runs the one-shot commands, then the service until it is ready.
func (x *exam) starts(ctx context.Context) {
	for _, args := range x.c.OneShot {
		id, err := x.create(ctx, args)
		if err != nil {
			x.add("starts", Bad, err.Error())
			return
		}
		code, err := x.once(ctx, id)
		out := x.tail(ctx, id, "all")
		x.output += out
		x.remove(ctx, id)
		if err != nil || code != 0 {
			x.add("starts", Bad, strings.TrimSpace(fmt.Sprintf("%v ended with %d %v: %s", args, code, orEmpty(err), out)))
			return
		}
	}
	if len(x.c.Ready) == 0 {
		x.add("starts", OK, "")
		return
	}
	err := x.start(ctx)
	if err == nil {
		err = x.ready(ctx)
	}
	if x.failed = err != nil; x.failed {
		detail := err.Error() + "\n" + x.tail(ctx, x.main, "20")
		for i, id := range x.others {
			detail += "\n" + x.c.With[i].Alias + " beside it: " + x.tail(ctx, id, "20")
		}
		x.add("starts", Bad, detail)
		return
	}
	x.add("starts", OK, "")
}

func orEmpty(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (x *exam) once(ctx context.Context, id string) (int64, error) {
	waiting := x.e.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := x.e.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return 0, err
	}
	select {
	case err := <-waiting.Error:
		return 0, err
	case end := <-waiting.Result:
		return end.StatusCode, nil
	}
}

// ready waits until the ready command succeeds in the running container.
func (x *exam) ready(ctx context.Context) error {
	return until(ctx, startLimit, func() (bool, error) {
		state, err := x.e.ContainerInspect(ctx, x.main, client.ContainerInspectOptions{})
		if err != nil {
			return true, err
		}
		if s := state.Container.State; !s.Running {
			return true, fmt.Errorf("it ended with exit code %d", s.ExitCode)
		}
		code, out, err := x.exec(ctx, x.c.Ready)
		if err == nil && code != 0 {
			err = fmt.Errorf("%v: exit code %d: %s", x.c.Ready, code, strings.TrimSpace(out))
		}
		return err == nil, err
	})
}

// until calls try until it is done; it gives the last error.
func until(ctx context.Context, limit time.Duration, try func() (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		done, err := try()
		if done {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", limit, err)
		case <-tick.C:
		}
	}
}

func (x *exam) exec(ctx context.Context, args []string) (int, string, error) {
	c, err := x.e.ExecCreate(ctx, x.main, client.ExecCreateOptions{Cmd: args, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return 0, "", err
	}
	a, err := x.e.ExecAttach(ctx, c.ID, client.ExecAttachOptions{})
	if err != nil {
		return 0, "", err
	}
	defer a.Close()
	var b bytes.Buffer
	if _, err := stdcopy.StdCopy(&b, &b, io.LimitReader(a.Reader, maxOutput)); err != nil {
		return 0, "", err
	}
	end, err := x.e.ExecInspect(ctx, c.ID, client.ExecInspectOptions{})
	return end.ExitCode, b.String(), err
}

func (x *exam) user(ctx context.Context) {
	want := x.r.Manifest.RunsAs
	if want == "" {
		x.add("user", OK, "root, as the image of that name")
		return
	}
	if x.failed {
		x.add("user", Bad, "it does not run")
		return
	}
	_, out, err := x.exec(ctx, []string{"sh", "-c", `while read -r k v rest; do [ "$k" = Uid: ] && id=$v; done </proc/1/status; while IFS=: read -r n p u rest; do [ "$u" = "$id" ] && echo "$n" && break; done </etc/passwd`})
	have := strings.TrimSpace(out)
	x.say("user", err == nil && have == want, fmt.Sprintf("runs as %q, should be %s %s", have, want, orEmpty(err)))
}

func (x *exam) health(ctx context.Context, image client.ImageInspectResult) {
	if image.Config == nil || image.Config.Healthcheck == nil {
		x.add("health", None, "no service, no health check")
		return
	}
	err := until(ctx, startLimit, func() (bool, error) {
		state, err := x.e.ContainerInspect(ctx, x.main, client.ContainerInspectOptions{})
		if err != nil {
			return true, err
		}
		h := state.Container.State.Health
		switch {
		case h != nil && h.Status == container.Healthy:
			return true, nil
		case !state.Container.State.Running:
			return true, fmt.Errorf("it does not run")
		case h != nil && len(h.Log) > 0:
			return false, fmt.Errorf("%s: %s", h.Status, h.Log[len(h.Log)-1].Output)
		}
		return false, fmt.Errorf("no result")
	})
	x.say("health", err == nil, orEmpty(err))
}

func (x *exam) matches(text string) bool {
	ok, err := regexp.MatchString(x.c.Log, text)
	return err == nil && ok
}

func (x *exam) logs(ctx context.Context) {
	err := until(ctx, 10*time.Second, func() (bool, error) {
		if x.matches(x.tail(ctx, x.main, "all")) {
			return true, nil
		}
		return false, fmt.Errorf("docker logs lacks %q", x.c.Log)
	})
	x.say("logs", err == nil, orEmpty(err))
}

// volume writes, stops (which is a check of its own), removes the container,
// and reads from a new one with the same volumes.
func (x *exam) volume(ctx context.Context) {
	if x.failed {
		x.add("stop", Bad, "it does not run")
		x.add("volume", Bad, "it does not run")
		return
	}
	put := func() error { return nil }
	if x.c.Write != "" {
		put = func() error { return x.shell(ctx, x.c.Write) }
	}
	wrote := put()
	x.stop(ctx)
	if x.c.Write == "" {
		x.add("volume", None, "nothing is kept")
		return
	}
	err := wrote
	if err == nil {
		// A restart of the same container, then another one.
		if _, err = x.e.ContainerStart(ctx, x.main, client.ContainerStartOptions{}); err == nil {
			err = x.reads(ctx)
		}
	}
	if err == nil {
		_, _ = x.e.ContainerStop(ctx, x.main, client.ContainerStopOptions{})
		x.remove(ctx, x.main)
		if err = x.start(ctx); err == nil {
			err = x.reads(ctx)
		}
	}
	detail := orEmpty(err)
	if err != nil {
		detail += "\n" + x.tail(ctx, x.main, "20")
	}
	x.say("volume", err == nil, detail)
}

func (x *exam) reads(ctx context.Context) error {
	if err := x.ready(ctx); err != nil {
		return err
	}
	return x.shell(ctx, x.c.Read)
}

func (x *exam) shell(ctx context.Context, script string) error {
	code, out, err := x.exec(ctx, []string{"sh", "-c", script})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", script, code, strings.TrimSpace(out))
	}
	return err
}

// stop sends the image's signal; the process must end by itself in time.
func (x *exam) stop(ctx context.Context) {
	seconds := x.c.Stop
	_, err := x.e.ContainerStop(ctx, x.main, client.ContainerStopOptions{Timeout: &seconds})
	if err != nil {
		x.add("stop", Bad, err.Error())
		return
	}
	state, err := x.e.ContainerInspect(ctx, x.main, client.ContainerInspectOptions{})
	if err != nil {
		x.add("stop", Bad, err.Error())
		return
	}
	code := state.Container.State.ExitCode
	x.say("stop", code != 137, fmt.Sprintf("killed after %d s: %s", seconds, x.tail(ctx, x.main, "20")))
}

func (x *exam) tail(ctx context.Context, id, lines string) string {
	if id == "" {
		return ""
	}
	logs, err := x.e.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: lines})
	if err != nil {
		return err.Error()
	}
	defer logs.Close()
	var b bytes.Buffer
	_, _ = stdcopy.StdCopy(&b, &b, io.LimitReader(logs, maxOutput))
	return strings.TrimSpace(b.String())
}

func (x *exam) remove(ctx context.Context, id string) {
	_, _ = x.e.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
}

// clean removes all that the examination made.
func (x *exam) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, id := range append(x.others, x.main) {
		if id != "" {
			x.remove(ctx, id)
		}
	}
	for _, v := range x.volumes {
		name, _, _ := strings.Cut(v, ":")
		_, _ = x.e.VolumeRemove(ctx, name, client.VolumeRemoveOptions{Force: true})
	}
	if x.network != "" {
		_, _ = x.e.NetworkRemove(ctx, x.network, client.NetworkRemoveOptions{})
	}
}
