package containerd

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/format/dockerchange"
	"github.com/berth-project/berth/lib/fault"
)

// Commit makes an image of a container's root and returns its id.
func (l *Library) Commit(ctx context.Context, o image.CommitInput) (string, error) {
	name := ""
	if o.Reference != "" {
		var err error
		if name, err = parseTag(o.Reference); err != nil {
			return "", err
		}
	}
	var spec dockerspec.DockerOCIImage
	var layers []ocispec.Descriptor
	if o.ParentID != "" {
		_, t, err := l.find(o.ParentID)
		if err != nil {
			return "", err
		}
		spec = t.spec
		spec.History, spec.RootFS.DiffIDs = slices.Clone(t.spec.History), slices.Clone(t.spec.RootFS.DiffIDs)
		layers = slices.Clone(t.layers)
	} else {
		spec.OS, spec.Architecture = "linux", runtime.GOARCH
		spec.RootFS.Type = "layers"
	}
	spec.Config = dockerConfig(o.Config)
	if err := dockerchange.Apply(&spec.Config, o.Changes); err != nil {
		return "", fault.Invalidf("%w", err)
	}
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	layer, err := l.layerOf(ctx, o.ContainerID)
	if err != nil {
		return "", err
	}
	now := time.Now().UTC()
	spec.Created, spec.Author = &now, o.Author
	spec.RootFS.DiffIDs = append(spec.RootFS.DiffIDs, layer.Digest)
	spec.History = append(spec.History, ocispec.History{Created: &now, Author: o.Author, Comment: o.Comment, CreatedBy: strings.Join(append(slices.Clone(o.Config.Entrypoint), o.Config.Cmd...), " ")})
	t, err := l.write(ctx, name, spec, dockerExtra{Parent: o.ParentID, Comment: o.Comment}, append(layers, layer))
	if err != nil {
		return "", err
	}
	if name != "" {
		l.publish("tag", t.id, t, familiar(name))
	}
	return t.id, nil
}

func dockerConfig(c container.ImageConfig) dockerspec.DockerOCIImageConfig {
	var out dockerspec.DockerOCIImageConfig
	out.User, out.Env, out.Entrypoint, out.Cmd, out.WorkingDir, out.Labels = c.User, c.Env, c.Entrypoint, c.Cmd, c.WorkingDir, c.Labels
	out.StopSignal, out.OnBuild, out.Shell = c.StopSignal, c.OnBuild, c.Shell
	for _, p := range c.ExposedPorts {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[fmt.Sprintf("%d/%s", p.Number, p.Proto)] = struct{}{}
	}
	for _, v := range c.Volumes {
		if out.Volumes == nil {
			out.Volumes = map[string]struct{}{}
		}
		out.Volumes[v] = struct{}{}
	}
	if h := c.Health; h != nil {
		out.Healthcheck = &dockerspec.HealthcheckConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return out
}
