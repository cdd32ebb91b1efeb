package maker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/cli/library/layer"
	"github.com/berth-project/berth/format/debian"
	"github.com/berth-project/berth/lib/inflate"
)

// Limits of archives that an engine gives.
const (
	maxMembers = 10_000
	maxJSON    = 16 << 20
)

// path is the cache's file of a package that was fetched.
func (m *Maker) path(p *debian.Package) (string, error) {
	return m.snap.Get(context.Background(), p, nil)
}

// pack gives the engine the image: the layers of base and tree on top.
func (m *Maker) pack(ctx context.Context, p *plan, base *Result, tree *layer.Tree) (*Result, error) {
	config := cloneConfig(p.config)
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	man := p.recipe.Manifest
	for k, v := range map[string]string{
		LabelInputs:                            p.inputs,
		"org.opencontainers.image.title":       p.recipe.Name,
		"org.opencontainers.image.description": man.Description.English,
		"org.opencontainers.image.licenses":    man.Licence,
		"org.opencontainers.image.version":     p.version(),
	} {
		if delete(config.Labels, k); v != "" {
			config.Labels[k] = v
		}
	}
	var below *saved
	if base != nil {
		var err error
		if below, err = m.save(ctx, base.ID); err != nil {
			return nil, err
		}
		defer below.Close()
	}
	image := dockerspec.DockerOCIImage{Image: ocispec.Image{
		Created: &p.epoch, Author: "Berth's library", Platform: ocispec.Platform{Architecture: m.architecture(), OS: "linux"},
		RootFS: ocispec.RootFS{Type: "layers"},
	}, Config: config}
	if base != nil {
		for _, d := range below.diffs {
			image.History = append(image.History, ocispec.History{Created: &p.epoch, CreatedBy: "berth library build " + base.Name})
			image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, d)
		}
	}
	image.History = append(image.History, ocispec.History{Created: &p.epoch, CreatedBy: "berth library build " + p.recipe.Name})
	id, size, err := m.send(ctx, tree, below, image, p.tags(), p.epoch)
	if err != nil {
		return nil, err
	}
	return p.result(id, size, true), nil
}

func (m *Maker) architecture() string { return m.o.Mirror.GoArchitecture() }

// load gives the engine an image of one tree without a name, and its id: one of
// this build alone, which it may remove.
func (m *Maker) load(ctx context.Context, tree *layer.Tree) (string, error) {
	now := time.Now()
	image := dockerspec.DockerOCIImage{Image: ocispec.Image{
		Created: &now, Platform: ocispec.Platform{Architecture: m.architecture(), OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"},
		History: []ocispec.History{{Created: &now, CreatedBy: "step of the library"}},
	}}
	image.Config.Labels = m.temporary("root")
	id, _, err := m.send(ctx, tree, nil, image, nil, now)
	return id, err
}

// send streams a docker archive to the engine: manifest, configuration and
// layers. It gives the image's id and its size with all layers in bytes, as the
// engine has it.
func (m *Maker) send(ctx context.Context, tree *layer.Tree, below *saved, image dockerspec.DockerOCIImage, tags []string, epoch time.Time) (string, int64, error) {
	diff, size, err := tree.Digest(epoch)
	if err != nil {
		return "", 0, err
	}
	image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, digest.Digest("sha256:"+diff))
	config, err := json.Marshal(image)
	if err != nil {
		return "", 0, err
	}
	sum := sha256.Sum256(config)
	id := hex.EncodeToString(sum[:])
	var layers []string
	if below != nil {
		for i := range below.layers {
			layers = append(layers, fmt.Sprintf("%d-%s/layer.tar", i, below.diffs[i].Encoded()))
		}
	}
	layers = append(layers, fmt.Sprintf("%d-%s/layer.tar", len(layers), diff))
	manifest, err := json.Marshal([]map[string]any{{"Config": id + ".json", "RepoTags": tags, "Layers": layers}})
	if err != nil {
		return "", 0, err
	}
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		t := tar.NewWriter(w)
		put := func(name string, size int64, fill func(io.Writer) error) error {
			err := t.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: epoch})
			if err != nil {
				return err
			}
			return fill(t)
		}
		bytesOf := func(b []byte) func(io.Writer) error {
			return func(w io.Writer) error { _, err := w.Write(b); return err }
		}
		err := put("manifest.json", int64(len(manifest)), bytesOf(manifest))
		if err == nil {
			err = put(id+".json", int64(len(config)), bytesOf(config))
		}
		for i, name := range layers[:len(layers)-1] {
			if err == nil {
				err = put(name, below.layers[i].size, func(w io.Writer) error {
					_, err := io.Copy(w, io.NewSectionReader(below.file, below.layers[i].offset, below.layers[i].size))
					return err
				})
			}
		}
		if err == nil {
			err = put(layers[len(layers)-1], size, func(w io.Writer) error { return tree.Write(w, epoch) })
		}
		if err == nil {
			err = t.Close()
		}
		w.CloseWithError(err)
	}()
	answer, err := m.o.Engine.ImageLoad(ctx, r, client.ImageLoadWithQuiet(true))
	if err != nil {
		return "", 0, err
	}
	defer answer.Close()
	if err := loadError(answer); err != nil {
		return "", 0, err
	}
	given, err := m.o.Engine.ImageInspect(ctx, "sha256:"+id)
	if err != nil {
		return "", 0, fmt.Errorf("the engine does not have the image it was given: %w", err)
	}
	return "sha256:" + id, given.Size, nil
}

// loadError finds an error in the messages of a load.
func loadError(r io.Reader) error {
	for d := json.NewDecoder(r); ; {
		var line struct {
			Error string `json:"error"`
		}
		err := d.Decode(&line)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if line.Error != "" {
			return errors.New(line.Error)
		}
	}
}

// saved is a docker archive that an engine gave, in a temporary file.
type saved struct {
	file   *os.File
	layers []member
	diffs  []digest.Digest
}

type member struct{ offset, size int64 }

func (s *saved) Close() error { return s.file.Close() }

// layer gives the plain bytes of one layer.
func (s *saved) layer(i int) (io.ReadCloser, error) {
	if i < 0 || i >= len(s.layers) {
		return nil, fmt.Errorf("the engine's archive has no layer %d", i)
	}
	return inflate.NewReader(io.NewSectionReader(s.file, s.layers[i].offset, s.layers[i].size))
}

func (m *Maker) save(ctx context.Context, image string) (*saved, error) {
	r, err := m.o.Engine.ImageSave(ctx, []string{image})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := os.CreateTemp("", "berth-image-")
	if err != nil {
		return nil, err
	}
	s := &saved{file: f}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = io.Copy(f, r)
	}
	if err == nil {
		err = s.index()
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("save %s: %w", image, err)
	}
	return s, nil
}

func (s *saved) index() error {
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	c := &counted{r: s.file}
	members := map[string]member{}
	for t := tar.NewReader(c); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(members) > maxMembers {
			return fmt.Errorf("more than %d members", maxMembers)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			members[h.Name] = member{c.n, h.Size}
		case tar.TypeSymlink, tar.TypeLink:
			return fmt.Errorf("member %s is a link", h.Name)
		}
	}
	var manifest []struct {
		Config string
		Layers []string
	}
	if err := s.json(members, "manifest.json", &manifest); err != nil {
		return err
	}
	if len(manifest) != 1 {
		return fmt.Errorf("%d images instead of one", len(manifest))
	}
	var config ocispec.Image
	if err := s.json(members, manifest[0].Config, &config); err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(manifest[0].Layers) {
		return fmt.Errorf("%d layers, but %d digests of layers", len(manifest[0].Layers), len(config.RootFS.DiffIDs))
	}
	for _, d := range config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("digest %q of a layer: %w", d, err)
		}
	}
	s.diffs = config.RootFS.DiffIDs
	for _, name := range manifest[0].Layers {
		l, ok := members[name]
		if !ok {
			return fmt.Errorf("no member %s", name)
		}
		s.layers = append(s.layers, l)
	}
	return nil
}

func (s *saved) json(members map[string]member, name string, out any) error {
	f, ok := members[name]
	if !ok || f.size > maxJSON {
		return fmt.Errorf("no member %s, or too large", name)
	}
	b, err := io.ReadAll(io.NewSectionReader(s.file, f.offset, f.size))
	if err != nil {
		return err
	}
	return json.NewDecoder(bytes.NewReader(b)).Decode(out)
}

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
