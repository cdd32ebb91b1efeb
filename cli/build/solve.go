package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/opts"
	units "github.com/docker/go-units"
	"github.com/moby/buildkit/client"
	buildctl "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/solver/pb"
	mobyclient "github.com/moby/moby/client"
	"github.com/tonistiigi/fsutil"
)

var pingOptions = mobyclient.PingOptions{}

// solve words the flags for BuildKit. Cleanup removes what was put on disk.
func (o options) solve(docker command.Cli, where string) (so client.SolveOpt, cleanup func(), err error) {
	cleanup = func() {}
	attrs := map[string]string{"image-resolve-mode": pb.AttrImageResolveModePreferLocal}
	so = client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{}, AllowedEntitlements: o.allow}
	if o.pull {
		attrs["image-resolve-mode"] = pb.AttrImageResolveModeForcePull
	}
	if o.noCache {
		attrs["no-cache"] = ""
	} else if len(o.noCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(o.noCacheFilter, ",")
	}
	for key, value := range map[string]string{"target": o.target, "platform": strings.Join(o.platforms, ","), "cgroup-parent": o.cgroupParent} {
		if value != "" {
			attrs[key] = value
		}
	}
	switch o.network {
	case "", "default":
	case "none":
		attrs["force-network-mode"] = o.network
	case "host":
		attrs["force-network-mode"] = o.network
		so.AllowedEntitlements = append(so.AllowedEntitlements, "network.host")
	default:
		return so, cleanup, fmt.Errorf("network %q is not supported for builds: use default, none or host", o.network)
	}
	pairs(attrs, "build-arg:", o.args, true)
	pairs(attrs, "label:", o.labels, false)
	if err := o.limits(attrs); err != nil {
		return so, cleanup, err
	}
	if err := o.attestations(attrs); err != nil {
		return so, cleanup, err
	}
	so.Session = append(so.Session, authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{AuthConfigProvider: authprovider.LoadAuthConfig(docker.ConfigFile())}))
	if err := o.attach(&so); err != nil {
		return so, cleanup, err
	}
	if err := o.results(&so); err != nil {
		return so, cleanup, err
	}
	if so.CacheImports, err = buildctl.ParseImportCache(o.cacheFrom); err != nil {
		return so, cleanup, err
	}
	if so.CacheExports, err = buildctl.ParseExportCache(o.cacheTo); err != nil {
		return so, cleanup, err
	}
	cleanup, err = o.context(docker, &so, where)
	return so, cleanup, err
}

// pairs puts name=value words into attributes; fill takes a missing value from
// the environment.
func pairs(attrs map[string]string, prefix string, list []string, fill bool) {
	for _, text := range list {
		k, v, ok := strings.Cut(text, "=")
		if !ok && fill {
			if v, ok = os.LookupEnv(k); !ok {
				continue
			}
		}
		attrs[prefix+k] = v
	}
}

func (o options) limits(attrs map[string]string) error {
	var hosts []string
	for _, h := range o.hosts {
		name, address, ok := strings.Cut(strings.Replace(h, "=", ":", 1), ":")
		if !ok {
			return fmt.Errorf("bad format for --add-host: %q: want name:address", h)
		}
		hosts = append(hosts, name+"="+strings.Trim(address, "[]"))
	}
	if len(hosts) > 0 {
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	if o.shmSize != "" {
		n, err := units.RAMInBytes(o.shmSize)
		if err != nil {
			return fmt.Errorf("--shm-size: %w", err)
		}
		attrs["shm-size"] = strconv.FormatInt(n, 10)
	}
	limits := opts.NewUlimitOpt(nil)
	for _, u := range o.ulimits {
		if err := limits.Set(u); err != nil {
			return fmt.Errorf("--ulimit: %w", err)
		}
	}
	var list []string
	for _, u := range limits.GetList() {
		list = append(list, u.String())
	}
	if len(list) > 0 {
		attrs["ulimit"] = strings.Join(list, ",")
	}
	return nil
}

func (o options) attestations(attrs map[string]string) error {
	set := func(kind, value string) {
		switch value {
		case "", "false":
		case "true":
			attrs["attest:"+kind] = ""
		case "min", "max":
			attrs["attest:"+kind] = "mode=" + value
		default:
			attrs["attest:"+kind] = value
		}
	}
	set("provenance", o.provenance)
	set("sbom", o.sbom)
	for _, a := range o.attests {
		rest, ok := strings.CutPrefix(a, "type=")
		if !ok {
			return fmt.Errorf("--attest %s: want type=provenance or type=sbom first", a)
		}
		kind, values, _ := strings.Cut(rest, ",")
		attrs["attest:"+kind] = values
	}
	return nil
}

// attach adds what the client serves to the build: secrets and SSH agents.
func (o options) attach(so *client.SolveOpt) error {
	if len(o.secrets) > 0 {
		s, err := buildctl.ParseSecret(o.secrets)
		if err != nil {
			return err
		}
		so.Session = append(so.Session, s)
	}
	if len(o.ssh) > 0 {
		list, err := buildctl.ParseSSH(o.ssh)
		if err != nil {
			return err
		}
		s, err := sshprovider.NewSSHAgentProvider(list)
		if err != nil {
			return err
		}
		so.Session = append(so.Session, s)
	}
	return nil
}

// results says where what is built goes.
func (o options) results(so *client.SolveOpt) error {
	var names []string
	for _, t := range o.tags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return fmt.Errorf("invalid tag %q: %w", t, err)
		}
		names = append(names, reference.TagNameOnly(named).String())
	}
	var wanted []string
	for _, out := range o.outputs {
		switch {
		case out == "-":
			out = "type=tar,dest=-"
		case !strings.Contains(out, "="):
			out = "type=local,dest=" + out
		}
		wanted = append(wanted, out)
	}
	if len(wanted) == 0 || o.load {
		wanted = append(wanted, "type=image")
	}
	list, err := buildctl.ParseOutput(wanted)
	if err != nil {
		return err
	}
	for i := range list {
		e := &list[i]
		if e.Type != client.ExporterImage {
			if (e.Type == client.ExporterOCI || e.Type == client.ExporterDocker) && e.Attrs["name"] == "" && len(names) > 0 {
				e.Attrs["name"] = strings.Join(names, ",")
			}
			continue
		}
		if e.Attrs["name"] == "" {
			e.Attrs["name"] = strings.Join(names, ",")
		}
		if o.push {
			if len(names) == 0 {
				return fmt.Errorf("--push needs a name: add --tag")
			}
			e.Attrs["push"] = "true"
		}
	}
	so.Exports = list
	return nil
}

// context gives BuildKit the files of the build.
func (o options) context(docker command.Cli, so *client.SolveOpt, where string) (cleanup func(), err error) {
	cleanup = func() {}
	local := func(name, dir string) error {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return fmt.Errorf("context %s: %w", dir, err)
		}
		so.LocalMounts[name] = fs
		return nil
	}
	for _, c := range o.contexts {
		name, at, ok := strings.Cut(c, "=")
		if !ok {
			return cleanup, fmt.Errorf("--build-context %s: want name=value", c)
		}
		if info, err := os.Stat(at); err == nil && info.IsDir() {
			if err := local(name, at); err != nil {
				return cleanup, err
			}
			at = "local:" + name
		}
		so.FrontendAttrs["context:"+name] = at
	}
	file := o.file
	switch {
	case where == "-" && file == "-":
		return cleanup, fmt.Errorf("the context and the Dockerfile cannot both come from stdin")
	case where == "-":
		return o.stdin(docker.In(), so, local)
	case isRemote(where):
		so.FrontendAttrs["context"] = where
		if file != "" {
			so.FrontendAttrs["filename"] = file
		}
		return cleanup, nil
	}
	if info, err := os.Stat(where); err != nil || !info.IsDir() {
		return cleanup, fmt.Errorf("path %q not found or no folder", where)
	}
	if err := local("context", where); err != nil {
		return cleanup, err
	}
	switch file {
	case "":
		file = filepath.Join(where, "Dockerfile")
	case "-":
		text, err := readDockerfile(docker.In())
		if err != nil {
			return cleanup, err
		}
		return dockerfile(text, so, local)
	}
	so.FrontendAttrs["filename"] = filepath.Base(file)
	return cleanup, local("dockerfile", filepath.Dir(file))
}

// maxDockerfile bounds a Dockerfile from stdin, in bytes.
const maxDockerfile = 4 << 20

func readDockerfile(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err == nil && len(text) > maxDockerfile {
		err = fmt.Errorf("the Dockerfile from stdin is longer than %d bytes", maxDockerfile)
	}
	return text, err
}

func isRemote(where string) bool {
	if strings.HasPrefix(where, "http://") || strings.HasPrefix(where, "https://") {
		return true
	}
	if _, err := os.Stat(where); err == nil {
		return false
	}
	_, isGit, err := dfgitutil.ParseGitRef(where)
	return isGit && err == nil
}

// dockerfile puts a Dockerfile's text where BuildKit can read it.
func dockerfile(text []byte, so *client.SolveOpt, local func(name, dir string) error) (func(), error) {
	dir, err := os.MkdirTemp("", "berth-build-")
	if err != nil {
		return func() {}, err
	}
	cleanup := func() { _ = os.RemoveAll(dir) }
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600); err != nil {
		return cleanup, err
	}
	so.FrontendAttrs["filename"] = "Dockerfile"
	return cleanup, local("dockerfile", dir)
}

// stdin reads an archive of the context, or a bare Dockerfile.
func (o options) stdin(r io.Reader, so *client.SolveOpt, local func(name, dir string) error) (func(), error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(1024)
	if err != nil && len(head) == 0 {
		return func() {}, fmt.Errorf("stdin is empty: want an archive or a Dockerfile")
	}
	_, err = tar.NewReader(bytes.NewReader(head)).Next()
	packed := bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.HasPrefix(head, []byte("BZh")) || bytes.HasPrefix(head, []byte{0xfd, '7', 'z'})
	if err == nil || packed {
		up := uploadprovider.New()
		so.FrontendAttrs["context"] = up.Add(io.NopCloser(in))
		if o.file != "" {
			so.FrontendAttrs["filename"] = o.file
		}
		so.Session = append(so.Session, session.Attachable(up))
		return func() {}, nil
	}
	text, err := readDockerfile(in)
	if err != nil {
		return func() {}, err
	}
	cleanup, err := dockerfile(text, so, local)
	if err == nil {
		so.LocalMounts["context"] = so.LocalMounts["dockerfile"]
	}
	return cleanup, err
}

// report prints and writes what the build tells of its result.
func (o options) report(docker command.Cli, resp map[string]string) error {
	id := resp[exptypes.ExporterImageConfigDigestKey]
	if id == "" {
		id = resp[exptypes.ExporterImageDigestKey]
	}
	if o.quiet && id != "" {
		fmt.Fprintln(docker.Out(), id)
	}
	if o.iidFile != "" {
		if err := os.WriteFile(o.iidFile, []byte(id), 0o666); err != nil {
			return err
		}
	}
	if o.metadataFile == "" {
		return nil
	}
	b, err := json.MarshalIndent(resp, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.metadataFile, append(b, '\n'), 0o666)
}
