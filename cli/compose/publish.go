package compose

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/core/app"
)

// Media types of a Compose application in a registry.
const (
	artifactType  = "application/vnd.docker.compose.project"
	composeLayer  = "application/vnd.docker.compose.file+yaml"
	envLayer      = "application/vnd.docker.compose.envfile"
	composeConfig = "application/vnd.docker.compose.config.empty.v1+json" // OCI 1.0 has no artifact type
)

type publishOptions struct {
	digests, env, yes, app, insecure bool
	version                          string
}

func (t *tool) publishCommand() *cobra.Command {
	var o publishOptions
	cmd := &cobra.Command{
		Use:   "publish [OPTIONS] REPOSITORY[:TAG]",
		Short: say("Publish compose application", "Publica la aplicación en un registro"),
		Example: `  berth compose publish registry.example.com/shop:1.4
  berth compose -f oci://registry.example.com/shop:1.4 up -d`,
		Args: cobra.ExactArgs(1),
		PreRunE: func(*cobra.Command, []string) error {
			if o.app {
				return errors.New("--app is not supported: push the images (berth compose push) and publish without it")
			}
			if o.version != "" && o.version != "1.0" && o.version != "1.1" {
				return fmt.Errorf("unsupported OCI version: %s: use 1.0 or 1.1", o.version)
			}
			return nil
		},
		RunE: t.run(func(ctx context.Context, args []string) error { return t.publish(ctx, o, args[0]) }),
	}
	f := cmd.Flags()
	f.BoolVar(&o.digests, "resolve-image-digests", false, "Pin image tags to digests")
	f.StringVar(&o.version, "oci-version", "", "OCI image/artifact specification version (automatically determined by default)")
	f.BoolVar(&o.env, "with-env", false, "Include environment variables in the published OCI artifact")
	f.BoolVarP(&o.yes, "yes", "y", false, `Assume "yes" as answer to all prompts`)
	f.BoolVar(&o.app, "app", false, "Published compose application (includes referenced images)")
	f.BoolVar(&o.insecure, "insecure-registry", false, "Use insecure registry")
	hide(f, "insecure-registry")
	f.SetNormalizeFunc(renames(map[string]string{"y": "yes"}))
	return cmd
}

func (t *tool) publish(ctx context.Context, o publishOptions, repository string) error {
	named, err := reference.ParseDockerRef(repository)
	if err != nil {
		return err
	}
	a, err := t.load(ctx, nil)
	if err != nil {
		return err
	}
	if err := t.mayPublish(ctx, a.Project, o); err != nil {
		return err
	}
	p := publication{env: o.env, files: map[string]bool{}}
	for _, f := range a.Project.ComposeFiles {
		if err := p.add(f, filepath.Base(f), false); err != nil {
			return err
		}
	}
	if o.digests {
		override, err := t.pinnedImages(ctx, a)
		if err != nil {
			return err
		}
		p.layer(composeLayer, "com.docker.compose.file", "image-digests.yaml", override)
	}
	t.screen.begin("publish")
	t.screen.on(event{id: repository, text: "publishing"})
	text := "published"
	if !t.dryRun {
		old, pushErr := t.pushArtifact(ctx, named, p.layers, o)
		if err = pushErr; old && err == nil {
			text = "published (registry rejected OCI 1.1; fell back to OCI 1.0)"
		}
	}
	if err != nil {
		t.screen.on(event{id: repository, state: failed, text: "Error", details: err.Error()})
	} else {
		t.screen.on(event{id: repository, state: done, text: text})
	}
	t.screen.end(err == nil)
	return err
}

// mayPublish refuses what others could not use, and asks about what they
// should perhaps not see.
func (t *tool) mayPublish(ctx context.Context, p *types.Project, o publishOptions) error {
	var built, binds, vars []string
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		if s.Image == "" && s.Build != nil {
			built = append(built, fmt.Sprintf("- %q", name))
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				binds = append(binds, name+": "+v.Source)
			}
		}
		if len(s.EnvFiles) > 0 || len(s.Environment) > 0 {
			vars = append(vars, name)
		}
	}
	if len(built) > 0 {
		return fmt.Errorf("your Compose stack cannot be published as it only contains a build section for service(s):\n%s\n%s", strings.Join(built, "\n"),
			say("Give them an image name and push it (berth compose push).", "Deles un nombre de imagen y súbala (berth compose push)."))
	}
	for _, ask := range []struct {
		list     []string
		question string
	}{
		{binds, say("These mounts name folders of your machine; their declarations (not their content) are published:\n  %s\nPublish them?",
			"Estos montajes nombran carpetas de su máquina; se publican sus declaraciones (no su contenido):\n  %s\n¿Publicarlos?")},
		{vars, say("These services declare environment variables, which others will read:\n  %s\nPublish them?",
			"Estos servicios declaran variables de entorno, que otros leerán:\n  %s\n¿Publicarlas?")},
	} {
		if len(ask.list) == 0 || o.yes {
			continue
		}
		ok, err := t.confirm(ctx, fmt.Sprintf(ask.question, strings.Join(ask.list, "\n  ")), false)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New(say("nothing was published", "no se publicó nada"))
		}
	}
	return nil
}

// publication gathers the files of an application. Local files that others
// refer to get names by the hash of their path: no path of this machine leaves it.
type publication struct {
	env    bool
	layers []ocispec.Descriptor
	files  map[string]bool // by name, once
}

func (p *publication) layer(mediaType, key, name string, content []byte) {
	p.layers = append(p.layers, ocispec.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content)), Data: content,
		Annotations: map[string]string{"com.docker.compose.version": strings.TrimPrefix(Version, "v"), key: name},
	})
}

func (p *publication) add(file, name string, extends bool) error {
	if p.files[name] {
		return nil
	}
	p.files[name] = true
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	changed := false
	if len(doc.Content) > 0 {
		if entry(doc.Content[0], "include") != nil {
			return errors.New("cannot publish compose file with local includes")
		}
		if services := entry(doc.Content[0], "services"); services != nil {
			for i := 1; i < len(services.Content); i += 2 {
				c, err := p.service(filepath.Dir(file), services.Content[i])
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				changed = changed || c
			}
		}
	}
	if changed {
		if text, err = yaml.Marshal(&doc); err != nil {
			return err
		}
	}
	p.layer(composeLayer, "com.docker.compose.file", name, text)
	if extends {
		p.layers[len(p.layers)-1].Annotations["com.docker.compose.extends"] = "true"
	}
	return nil
}

// service puts names that travel in place of those of env_file and extends.file.
func (p *publication) service(dir string, s *yaml.Node) (changed bool, err error) {
	if x := entry(s, "extends"); x != nil && x.Kind == yaml.MappingNode {
		if f := entry(x, "file"); f != nil && !strings.Contains(f.Value, "://") {
			path := absolute(dir, f.Value)
			f.Value, changed = hashed(path, ".yaml"), true
			if err := p.add(path, f.Value, true); err != nil {
				return true, err
			}
		}
	}
	e := entry(s, "env_file")
	if e == nil {
		return changed, nil
	}
	list := []*yaml.Node{e}
	if e.Kind == yaml.SequenceNode {
		list = e.Content
	}
	for _, f := range list {
		if f.Kind == yaml.MappingNode {
			f = entry(f, "path")
		}
		if f == nil {
			continue
		}
		path := absolute(dir, f.Value)
		f.Value, changed = hashed(path, ".env"), true
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || !p.env || p.files[f.Value] {
			continue
		}
		if err != nil {
			return true, err
		}
		p.files[f.Value] = true
		p.layer(envLayer, "com.docker.compose.envfile", f.Value, text)
	}
	return changed, nil
}

func hashed(path, ext string) string { return fmt.Sprintf("%x%s", sha256.Sum256([]byte(path)), ext) }

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// entry is the value of a key of a mapping, nil where there is none.
func entry(m *yaml.Node, key string) *yaml.Node {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// pinnedImages is a file that names the digests which the tags mean now.
func (t *tool) pinnedImages(ctx context.Context, a *app.App) ([]byte, error) {
	pin := t.pinned(ctx)
	services := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(a.Project.Services)) {
		image, err := pin(a.Project.Services[name].Image)
		if err != nil {
			return nil, fmt.Errorf("services.%s.image: %w", name, err)
		}
		services[name] = map[string]string{"image": image}
	}
	return yaml.Marshal(map[string]any{"services": services})
}

// pushArtifact sends layers and manifest. old tells that the registry took
// only the older of the two forms.
func (t *tool) pushArtifact(ctx context.Context, ref reference.Named, layers []ocispec.Descriptor, o publishOptions) (old bool, err error) {
	resolver := t.resolver(o.insecure)
	empty := []byte("{}")
	config := func(mediaType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(empty), Size: int64(len(empty)), Data: empty}
	}
	for _, l := range layers {
		if err := pushOne(ctx, resolver, ref, l); err != nil {
			return false, err
		}
	}
	for _, version := range []string{"1.1", "1.0"} {
		if o.version != "" && o.version != version {
			continue
		}
		m := ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers,
			Config: config(composeConfig), Annotations: map[string]string{ocispec.AnnotationCreated: time.Now().UTC().Format(time.RFC3339)},
		}
		if version == "1.1" {
			m.ArtifactType, m.Config = artifactType, config(ocispec.MediaTypeEmptyJSON)
		}
		if err = pushOne(ctx, resolver, ref, m.Config); err != nil {
			return false, err
		}
		text, err2 := json.Marshal(m)
		if err2 != nil {
			return false, err2
		}
		err = pushOne(ctx, resolver, ref, ocispec.Descriptor{
			MediaType: m.MediaType, ArtifactType: m.ArtifactType, Digest: digest.FromBytes(text), Size: int64(len(text)), Data: text,
		})
		var status interface{ HTTPStatusCode() int }
		refused := errors.As(err, &status) || errdefs.IsInvalidArgument(err)
		if err == nil || !refused || o.version != "" {
			return version == "1.0", err
		}
	}
	return false, err
}

// pushOne sends one blob, or the manifest, to which the tag then belongs.
func pushOne(ctx context.Context, r remotes.Resolver, ref reference.Named, d ocispec.Descriptor) error {
	pusher, err := r.Pusher(ctx, reference.TagNameOnly(ref).String())
	if err != nil {
		return err
	}
	ctx = remotes.WithMediaTypeKeyPrefix(remotes.WithMediaTypeKeyPrefix(ctx, composeLayer, "compose"), envLayer, "compose-env")
	ctx = remotes.WithMediaTypeKeyPrefix(remotes.WithMediaTypeKeyPrefix(ctx, composeConfig, "compose-config"), ocispec.MediaTypeEmptyJSON, "empty")
	w, err := pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(d.Data); err != nil {
		return err
	}
	if err := w.Commit(ctx, d.Size, d.Digest); !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// resolver reaches registries with what the person's configuration knows of them.
func (t *tool) resolver(insecure bool) remotes.Resolver {
	credentials := func(host string) (string, string, error) {
		if host == "registry-1.docker.io" {
			host = "https://index.docker.io/v1/"
		}
		auth, err := t.docker.ConfigFile().GetAuthConfig(host)
		if err != nil {
			return "", "", err
		}
		if auth.IdentityToken != "" {
			return "", auth.IdentityToken, nil
		}
		return auth.Username, cmp.Or(auth.Password, auth.RegistryToken), nil
	}
	plain := docker.MatchLocalhost
	if insecure {
		plain = docker.MatchAllHosts
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(credentials))), docker.WithPlainHTTP(plain),
	)})
}
