package maker

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/berth-project/berth/cli/library/layer"
	"github.com/berth-project/berth/format/debian"
)

// Limits of a step.
const (
	maxLog    = 1 << 20 // kept of a step's output, in bytes
	tellLines = 25      // shown of a failed step
	cleanTime = time.Minute
)

// work is the folder in the container where a job's files are. It is emptied
// by layer.Tidy.
const work = "var/cache/berth"

// The package with the library of noSync; it goes into no image.
const (
	helperName = "libeatmydata1"
	helperFile = "libeatmydata.so"
)

// job runs the steps of a stage in one container.
type job struct {
	m     *Maker
	p     *plan
	s     stage
	image string      // the base's id, or
	root  *layer.Tree // the unpacked Debian root to begin with
}

// run gives what the steps changed: the upper layer, or for a root the whole.
func (j *job) run(ctx context.Context) (*layer.Tree, error) {
	e := j.m.o.Engine
	image := j.image
	if j.root != nil {
		id, err := j.m.load(ctx, j.root)
		if err != nil {
			return nil, fmt.Errorf("load the unpacked root: %w", err)
		}
		image = id
		defer j.forget(ctx, id)
	}
	created, err := e.ContainerCreate(ctx, client.ContainerCreateOptions{
		Config: &container.Config{
			Image: image, User: "0", WorkingDir: "/", Hostname: "localhost", Entrypoint: []string{"/bin/sh", "/" + work + "/run"},
			Env: j.env(), Labels: j.m.temporary(j.p.recipe.Name),
			Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
		},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		_, _ = e.ContainerRemove(after, created.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	}()
	if err := j.put(ctx, created.ID); err != nil {
		return nil, fmt.Errorf("give the container its packages: %w", err)
	}
	if n := len(j.packages()); n > 0 {
		j.m.o.Say(Report{j.p.recipe.Name, "install", packages(n)})
	} else {
		j.m.o.Say(Report{Image: j.p.recipe.Name, Step: "run"})
	}
	if err := j.wait(ctx, created.ID); err != nil {
		return nil, err
	}
	if j.root != nil {
		return j.export(ctx, created.ID)
	}
	return j.upper(ctx, created.ID)
}

func (j *job) forget(ctx context.Context, image string) {
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	_, _ = j.m.o.Engine.ImageRemove(after, image, client.ImageRemoveOptions{Force: true, PruneChildren: true})
}

func (j *job) packages() []*debian.Package {
	var all []*debian.Package
	for _, list := range j.s.packages {
		all = append(all, list...)
	}
	return all
}

func (j *job) env() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true",
		"LC_ALL=C.UTF-8", "HOME=/root", "TZ=UTC", "LD_PRELOAD=/" + work + "/nosync.so", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", j.p.epoch.Unix()),
		// Compiled Python is the same each time.
		"PYTHONHASHSEED=0",
	}
	var below dockerspec.DockerOCIImageConfig
	if j.s.base != nil {
		below = cloneConfig(j.s.base.config)
	}
	config, err := j.s.Config(below)
	if err != nil {
		return env // the plan has said so
	}
	for _, e := range config.Env {
		if !strings.HasPrefix(e, "LANG=") && !strings.HasPrefix(e, "LC_") {
			env = append(env, e)
		}
	}
	return env
}

// put sends the script, the packages and the recipe's files.
func (j *job) put(ctx context.Context, id string) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(j.archive(w)) }()
	defer r.Close()
	_, err := j.m.o.Engine.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/", Content: r})
	return err
}

func (j *job) archive(w io.Writer) error {
	t := tar.NewWriter(w)
	for _, dir := range []string{"var", "var/cache", work, work + "/debs", work + "/rootfs"} {
		if err := t.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: j.p.epoch}); err != nil {
			return err
		}
	}
	put := func(name string, mode, size int64, body io.Reader) error {
		err := t.WriteHeader(&tar.Header{Name: path.Join(work, name), Typeflag: tar.TypeReg, Mode: mode, Size: size, ModTime: j.p.epoch})
		if err == nil {
			_, err = io.Copy(t, body)
		}
		return err
	}
	script := j.script()
	if err := put("run", 0o755, int64(len(script)), strings.NewReader(script)); err != nil {
		return err
	}
	for _, f := range j.p.recipe.Files {
		if err := put("rootfs/"+f.Path, fileMode(f.Executable()), int64(len(f.Body)), bytes.NewReader(f.Body)); err != nil {
			return err
		}
	}
	if lib, err := j.m.noSync(); err != nil {
		return err
	} else if err := put("nosync.so", 0o644, int64(len(lib)), bytes.NewReader(lib)); err != nil {
		return err
	}
	for _, p := range j.packages() {
		if err := j.deb(p, put); err != nil {
			return err
		}
	}
	return t.Close()
}

// noSync is the library that makes programs not wait for the disk: dpkg waits
// many times for each package, and a container that dies midway is thrown away.
func (m *Maker) noSync() (lib []byte, err error) {
	at, err := m.path(m.helper)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, err := debian.OpenDeb(f)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	err = d.Files(func(h *tar.Header, body io.Reader) error {
		if h.Typeflag == tar.TypeReg && strings.HasPrefix(path.Base(h.Name), helperFile) {
			lib, err = io.ReadAll(io.LimitReader(body, maxLog))
		}
		return err
	})
	if err == nil && len(lib) == 0 {
		err = fmt.Errorf("package %s has no %s", m.helper.Name, helperFile)
	}
	return lib, err
}

func (j *job) deb(p *debian.Package, put func(string, int64, int64, io.Reader) error) error {
	at, err := j.m.path(p)
	if err != nil {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	return put("debs/"+p.Name+".deb", 0o644, p.Size, f)
}

// script is what the container runs. Packages go in by dpkg itself, so that
// diversions, triggers, alternatives and maintainer scripts do what they do anywhere.
func (j *job) script() string {
	var b strings.Builder
	b.WriteString("set -eu\numask 022\ncd /\ndebs=/" + work + "/debs\n")
	for i, step := range j.s.Steps {
		switch {
		case step.Root:
			rootScript(&b)
		case step.Rootfs:
			b.WriteString("(cd /" + work + "/rootfs && find . -type f) | while read -r f; do\n\tmkdir -p \"/${f%/*}\"\n\tcp -p \"/" + work + "/rootfs/$f\" \"/$f\"\ndone\n")
		case step.Run != "":
			b.WriteString("( " + step.Run + "\n)\n")
		}
		if len(step.Install) == 0 {
			continue
		}
		for _, batch := range debian.Batches(j.s.packages[i]) {
			b.WriteString("dpkg --force-unsafe-io --force-confold --install")
			for _, p := range batch {
				b.WriteString(" $debs/" + p.Name + ".deb")
			}
			b.WriteString("\n")
		}
		for _, p := range j.s.packages[i] {
			b.WriteString("rm $debs/" + p.Name + ".deb\n")
		}
	}
	return b.String()
}

// rootScript turns unpacked files into installed packages: dpkg installs the
// same packages once more over them, the few first that others' scripts need.
func rootScript(b *strings.Builder) {
	b.WriteString(`mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /etc/apt
: >/var/lib/dpkg/status
ln -sf mawk /usr/bin/awk
ln -sf /usr/share/zoneinfo/UTC /etc/localtime
dpkg="dpkg --force-unsafe-io --force-confold --force-depends"
for p in base-passwd base-files dpkg libc6 perl-base; do
	$dpkg --install $debs/$p.deb
done
rm /usr/bin/awk
for p in mawk debconf; do
	$dpkg --install $debs/$p.deb
done
$dpkg --unpack $debs/*.deb
$dpkg --force-configure-any --configure --pending
dpkg --audit
rm $debs/*.deb
`)
}

// wait starts the container and waits for its end.
func (j *job) wait(ctx context.Context, id string) error {
	e := j.m.o.Engine
	// next-exit is asked before the start, so that no quick end is missed.
	waiting := e.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := e.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return err
	}
	select {
	case err := <-waiting.Error:
		return err
	case end := <-waiting.Result:
		if end.StatusCode == 0 {
			return nil
		}
		return fmt.Errorf("a step failed with exit code %d:\n%s", end.StatusCode, j.tail(ctx, id))
	}
}

func (j *job) tail(ctx context.Context, id string) string {
	logs, err := j.m.o.Engine.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(tellLines)})
	if err != nil {
		return err.Error()
	}
	defer logs.Close()
	var b bytes.Buffer
	_, _ = stdcopy.StdCopy(&b, &b, io.LimitReader(logs, maxLog))
	return strings.TrimSpace(b.String())
}

// export reads the whole root of the container.
func (j *job) export(ctx context.Context, id string) (*layer.Tree, error) {
	r, err := j.m.o.Engine.ContainerExport(ctx, id, client.ContainerExportOptions{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readTree(r)
}

// upper reads the container's own layer: it is committed, saved and the top of
// the saved layers taken.
func (j *job) upper(ctx context.Context, id string) (*layer.Tree, error) {
	committed, err := j.m.o.Engine.ContainerCommit(ctx, id, client.ContainerCommitOptions{Comment: "step of the library"})
	if err != nil {
		return nil, err
	}
	defer j.forget(ctx, committed.ID)
	saved, err := j.m.save(ctx, committed.ID)
	if err != nil {
		return nil, err
	}
	defer saved.Close()
	top, err := saved.layer(len(saved.layers) - 1)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	return readTree(top)
}

func readTree(r io.Reader) (*layer.Tree, error) {
	t, err := layer.New("")
	if err != nil {
		return nil, err
	}
	if err := t.Read(r); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

func fileMode(executable bool) int64 {
	if executable {
		return 0o755
	}
	return 0o644
}

// putFiles puts the recipe's rootfs into a tree.
func putFiles(t *layer.Tree, p *plan) error {
	for _, f := range p.recipe.Files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if err := t.Folder(dir, 0o755, p.epoch); err != nil {
				return err
			}
		}
		if err := t.Put(f.Path, fileMode(f.Executable()), f.Body, p.epoch); err != nil {
			return err
		}
	}
	return nil
}
