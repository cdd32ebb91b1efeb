package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/opts"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/ociindex"
	buildctl "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
)

// Target is one image to build.
type Target struct {
	Name    string // what progress, errors and other targets call it; unique in a batch
	Context string // a folder, an address, or - for stdin
	File    string // path of the Dockerfile, in the context where that is an address; - is stdin
	Inline  string // text of the Dockerfile, in place of a file
	Stage   string // stage of the Dockerfile; "" is the last one

	Args, Labels map[string]string
	Contexts     map[string]string // further ones: a folder, an address, docker-image://…, oci-layout://…, or target:NAME for the result of another target of the batch
	Tags         []string
	Platforms    []string
	Hosts        []string // lines of /etc/hosts, name=address or name:address
	Ulimits      []string // name=soft[:hard]
	Network      string   // default, none or host
	CgroupParent string
	ShmBytes     int64 // size of /dev/shm; 0 is the builder's own choice

	Secrets session.Attachable // answers the builder's questions for secrets; nil where there are none
	SSH     []string           // default|id[=socket|key]
	Allow   []string           // entitlements that the build is given

	CacheFrom, CacheTo, NoCacheFilter []string
	NoCache, Pull                     bool

	Outputs          []string // as --output takes them; none is the engine's own library
	Push             bool
	Attests          []string // type=provenance|sbom,…
	Provenance, SBOM string   // over those of Attests: "" leaves it, false, true, or attributes
	Internal         bool     // its result is for other targets alone
}

// FromTarget begins a context that is another target's result.
const FromTarget = "target:"

// solve words a target for BuildKit. Cleanup removes what was put on disk.
// Contexts that are targets are left to the batch.
func (t Target) solve(ctx context.Context, docker command.Cli, c *client.Client) (so client.SolveOpt, cleanup func(), err error) {
	cleanup = func() {}
	attrs := map[string]string{"image-resolve-mode": pb.AttrImageResolveModePreferLocal}
	so = client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{}, OCIStores: map[string]content.Store{}, AllowedEntitlements: slices.Clone(t.Allow)}
	if t.Pull {
		attrs["image-resolve-mode"] = pb.AttrImageResolveModeForcePull
	}
	if t.NoCache {
		attrs["no-cache"] = ""
	} else if len(t.NoCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(t.NoCacheFilter, ",")
	}
	for key, value := range map[string]string{"target": t.Stage, "platform": strings.Join(t.Platforms, ","), "cgroup-parent": t.CgroupParent} {
		if value != "" {
			attrs[key] = value
		}
	}
	switch t.Network {
	case "", "default":
	case "none":
		attrs["force-network-mode"] = t.Network
	case "host":
		attrs["force-network-mode"] = t.Network
		so.AllowedEntitlements = append(so.AllowedEntitlements, "network.host")
	default:
		return so, cleanup, fmt.Errorf(say("network %q is not supported for builds: use default, none or host", "la red %q no sirve para construir: use default, none o host"), t.Network)
	}
	given := map[string]bool{}
	for k, v := range t.Args {
		attrs["build-arg:"+k] = v
		given[strings.ToLower(k)] = true
	}
	for k, v := range docker.ConfigFile().ParseProxyConfig(docker.Client().DaemonHost(), nil) {
		if v != nil && !given[strings.ToLower(k)] { // BuildKit takes either case for both
			attrs["build-arg:"+k] = *v
		}
	}
	for k, v := range t.Labels {
		attrs["label:"+k] = v
	}
	if err := t.limits(attrs); err != nil {
		return so, cleanup, err
	}
	if err := t.hosts(ctx, attrs, c); err != nil {
		return so, cleanup, err
	}
	if err := t.attestations(attrs); err != nil {
		return so, cleanup, err
	}
	so.Session = append(so.Session, authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{AuthConfigProvider: authprovider.LoadAuthConfig(docker.ConfigFile())}))
	if err := t.attach(&so); err != nil {
		return so, cleanup, err
	}
	if err := t.results(&so); err != nil {
		return so, cleanup, err
	}
	if so.CacheImports, err = buildctl.ParseImportCache(caches(t.CacheFrom)); err != nil {
		return so, cleanup, err
	}
	if so.CacheExports, err = buildctl.ParseExportCache(caches(t.CacheTo)); err != nil {
		return so, cleanup, err
	}
	cleanup, err = t.context(docker, &so)
	return so, cleanup, err
}

// caches puts what a bare name of an image means into words.
func caches(list []string) (out []string) {
	for _, c := range list {
		if !strings.Contains(c, "=") {
			c = "type=registry,ref=" + c
		}
		out = append(out, c)
	}
	return out
}

// labelGateway is where a builder tells the address that host-gateway means.
const labelGateway = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"

func (t Target) hosts(ctx context.Context, attrs map[string]string, c *client.Client) error {
	var hosts []string
	for _, h := range t.Hosts {
		name, address, ok := strings.Cut(strings.Replace(h, "=", ":", 1), ":")
		if !ok {
			return fmt.Errorf("bad format for --add-host: %q: want name:address", h)
		}
		if address == "host-gateway" {
			workers, err := c.ListWorkers(ctx)
			if err != nil {
				return err
			}
			for _, w := range workers {
				address = w.Labels[labelGateway]
			}
			if address == "" || address == "host-gateway" {
				return fmt.Errorf("host %s: the builder does not tell the address that host-gateway means", name)
			}
		}
		hosts = append(hosts, name+"="+strings.Trim(address, "[]"))
	}
	if len(hosts) > 0 {
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	return nil
}

func (t Target) limits(attrs map[string]string) error {
	if t.ShmBytes > 0 {
		attrs["shm-size"] = strconv.FormatInt(t.ShmBytes, 10)
	}
	limits := opts.NewUlimitOpt(nil)
	for _, u := range t.Ulimits {
		if err := limits.Set(u); err != nil {
			return fmt.Errorf("ulimit: %w", err)
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

func (t Target) attestations(attrs map[string]string) error {
	set := func(kind, value string) {
		switch value {
		case "false", "disabled=true":
			delete(attrs, "attest:"+kind)
		case "true":
			attrs["attest:"+kind] = ""
		case "min", "max":
			attrs["attest:"+kind] = "mode=" + value
		default:
			attrs["attest:"+kind] = value
		}
	}
	for _, a := range t.Attests {
		rest, ok := strings.CutPrefix(a, "type=")
		if !ok {
			return fmt.Errorf("attestation %s: want type=provenance or type=sbom first", a)
		}
		kind, values, _ := strings.Cut(rest, ",")
		set(kind, cmp.Or(values, "true"))
	}
	if t.Provenance != "" {
		set("provenance", t.Provenance)
	}
	if t.SBOM != "" {
		set("sbom", t.SBOM)
	}
	return nil
}

// attach adds what the client serves to the build: secrets and SSH agents.
func (t Target) attach(so *client.SolveOpt) error {
	if t.Secrets != nil {
		so.Session = append(so.Session, t.Secrets)
	}
	if len(t.SSH) > 0 {
		list, err := buildctl.ParseSSH(t.SSH)
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

// exporterEngine is the engine's own library: "image" too, here and in new
// Docker engines; old ones know it by this name alone, and push nothing by it.
const exporterEngine = "moby"

// results says where what is built goes.
func (t Target) results(so *client.SolveOpt) error {
	if t.Internal {
		return nil
	}
	var names []string
	for _, tag := range t.Tags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			return fmt.Errorf("invalid tag %q: %w", tag, err)
		}
		names = append(names, reference.TagNameOnly(named).String())
	}
	var wanted []string
	for _, out := range t.Outputs {
		switch {
		case out == "-":
			out = "type=tar,dest=-"
		case !strings.Contains(out, "="):
			out = "type=local,dest=" + out
		}
		wanted = append(wanted, out)
	}
	switch {
	case len(wanted) > 0:
	case t.Push:
		wanted = []string{"type=" + client.ExporterImage}
	default:
		wanted = []string{"type=" + exporterEngine}
	}
	list, err := buildctl.ParseOutput(wanted)
	if err != nil {
		return err
	}
	for i := range list {
		e := &list[i]
		if e.Type != client.ExporterImage && e.Type != exporterEngine {
			if (e.Type == client.ExporterOCI || e.Type == client.ExporterDocker) && e.Attrs["name"] == "" && len(names) > 0 {
				e.Attrs["name"] = strings.Join(names, ",")
			}
			continue
		}
		if e.Attrs["name"] == "" {
			e.Attrs["name"] = strings.Join(names, ",")
		}
		if t.Push {
			if len(names) == 0 {
				return errors.New(say("--push needs a name: add --tag", "--push necesita un nombre: añada --tag"))
			}
			e.Attrs["push"] = "true"
		}
	}
	so.Exports = list
	return nil
}

// context gives BuildKit the files of the build.
func (t Target) context(docker command.Cli, so *client.SolveOpt) (cleanup func(), err error) {
	cleanup = func() {}
	mount := func(name, dir string) error {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return fmt.Errorf("context %s: %w", dir, err)
		}
		so.LocalMounts[name] = fs
		return nil
	}
	for name, at := range t.Contexts {
		if strings.HasPrefix(at, FromTarget) {
			continue
		}
		if path, ok := strings.CutPrefix(at, layoutScheme); ok {
			if at, err = layout(path, so); err != nil {
				return cleanup, fmt.Errorf("context %s: %w", name, err)
			}
		} else if info, err := os.Stat(at); err == nil && info.IsDir() {
			folder := name
			if name == "context" || name == "dockerfile" {
				folder = "_" + name // these two are the build's own
			}
			if err := mount(folder, at); err != nil {
				return cleanup, err
			}
			at = "local:" + folder
		}
		so.FrontendAttrs["context:"+name] = at
	}
	text, file := []byte(t.Inline), t.File
	switch {
	case t.Context == "-" && file == "-":
		return cleanup, errors.New(say("the context and the Dockerfile cannot both come from stdin", "el contexto y el Dockerfile no pueden venir ambos de la entrada"))
	case t.Context == "-":
		return t.stdin(docker.In(), so, mount)
	case file == "-":
		if text, err = readDockerfile(docker.In()); err != nil {
			return cleanup, err
		}
	}
	switch remote := IsRemote(t.Context); {
	case remote && len(text) > 0:
		so.FrontendAttrs["context"], so.FrontendAttrs["dockerfilekey"] = t.Context, "dockerfile"
		return dockerfile(text, so, mount)
	case remote:
		so.FrontendAttrs["context"] = t.Context
		if file != "" {
			so.FrontendAttrs["filename"] = file
		}
		return cleanup, nil
	}
	if info, err := os.Stat(t.Context); err != nil || !info.IsDir() {
		return cleanup, fmt.Errorf(say("path %q not found or no folder", "la ruta %q no existe o no es una carpeta"), t.Context)
	}
	if err := mount("context", t.Context); err != nil {
		return cleanup, err
	}
	if so.SharedKey, err = sharedKey(t.Context); err != nil {
		return cleanup, err
	}
	if len(text) > 0 || file == "-" {
		return dockerfile(text, so, mount)
	}
	if file == "" {
		file = filepath.Join(t.Context, "Dockerfile")
	}
	so.FrontendAttrs["filename"] = filepath.Base(file)
	return cleanup, mount("dockerfile", filepath.Dir(file))
}

const layoutScheme = "oci-layout://"

// layout serves an image of an OCI layout, path[:tag][@digest], and gives the
// address under which the builder asks for it.
func layout(at string, so *client.SolveOpt) (string, error) {
	path, dgst, _ := strings.Cut(at, "@")
	tag := "latest"
	if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
		path, tag = path[:i], path[i+1:]
	}
	if _, err := os.Stat(filepath.Join(path, ocispec.ImageLayoutFile)); err != nil {
		return "", fmt.Errorf("no OCI layout: %w", err)
	}
	if dgst == "" {
		desc, err := ociindex.NewStoreIndex(path).Get(tag)
		if err != nil {
			return "", err
		}
		if desc == nil {
			return "", fmt.Errorf("%s has no image %s", path, tag)
		}
		dgst = desc.Digest.String()
	}
	store, err := local.NewStore(path)
	if err != nil {
		return "", err
	}
	id := identity.NewID()
	so.OCIStores[id] = store
	return layoutScheme + id + "@" + dgst, nil
}

// sharedKey says which folder of which machine a context is, so that the
// builder asks for what has changed in it, and two builds at a time do not take
// the copy of each other's for their own.
func sharedKey(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(host + "\x00" + dir))
	return hex.EncodeToString(sum[:16]), nil
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

// IsRemote tells whether a context is fetched by the builder, and no folder here.
func IsRemote(where string) bool {
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
func dockerfile(text []byte, so *client.SolveOpt, mount func(name, dir string) error) (func(), error) {
	dir, err := os.MkdirTemp("", "berth-build-")
	if err != nil {
		return func() {}, err
	}
	cleanup := func() { _ = os.RemoveAll(dir) }
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600); err != nil {
		return cleanup, err
	}
	so.FrontendAttrs["filename"] = "Dockerfile"
	return cleanup, mount("dockerfile", dir)
}

// stdin reads an archive of the context, or a bare Dockerfile.
func (t Target) stdin(r io.Reader, so *client.SolveOpt, mount func(name, dir string) error) (func(), error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(1024)
	if err != nil && len(head) == 0 {
		return func() {}, errors.New(say("stdin is empty: want an archive or a Dockerfile", "la entrada está vacía: se espera un archivo tar o un Dockerfile"))
	}
	_, err = tar.NewReader(bytes.NewReader(head)).Next()
	packed := bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.HasPrefix(head, []byte("BZh")) || bytes.HasPrefix(head, []byte{0xfd, '7', 'z'})
	if err == nil || packed {
		up := uploadprovider.New()
		so.FrontendAttrs["context"] = up.Add(io.NopCloser(in))
		if t.File != "" {
			so.FrontendAttrs["filename"] = t.File
		}
		so.Session = append(so.Session, up)
		return func() {}, nil
	}
	text, err := readDockerfile(in)
	if err != nil {
		return func() {}, err
	}
	cleanup, err := dockerfile(text, so, mount)
	if err == nil {
		so.LocalMounts["context"] = so.LocalMounts["dockerfile"]
	}
	return cleanup, err
}
