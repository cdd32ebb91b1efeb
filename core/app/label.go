package app

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// Labels by which docker compose, of all versions, knows what is its own.
const (
	LabelApp          = "com.docker.compose.project"
	LabelService      = "com.docker.compose.service"
	LabelHash         = "com.docker.compose.config-hash"
	LabelNumber       = "com.docker.compose.container-number"
	LabelVolume       = "com.docker.compose.volume"
	LabelNetwork      = "com.docker.compose.network"
	LabelWorkingDir   = "com.docker.compose.project.working_dir"
	LabelConfigFiles  = "com.docker.compose.project.config_files"
	LabelEnvFile      = "com.docker.compose.project.environment_file"
	LabelOneOff       = "com.docker.compose.oneoff"
	LabelSlug         = "com.docker.compose.slug"
	LabelImage        = "com.docker.compose.image"
	LabelImageVolumes = "com.docker.compose.image-volume-digest"
	LabelDependsOn    = "com.docker.compose.depends_on"
	LabelVersion      = "com.docker.compose.version"
	LabelReplace      = "com.docker.compose.replace"
	LabelHook         = "com.docker.compose.hook"
	LabelHookIndex    = "com.docker.compose.hook-index"
)

// LabelScope on a volume of a file says "machine" where it belongs to no
// application, as the named volumes of the first format: it is made where it
// is missing, and no `down` removes it.
const (
	LabelScope   = "berth.scope"
	ScopeMachine = "machine"
)

// ComposeVersion is the docker compose whose labels and hashes are written.
const ComposeVersion = "5.6.0"

func separator(compatibility bool) string {
	if compatibility {
		return "_"
	}
	return "-"
}

// containerName is that of one of a service's containers.
func containerName(app string, s types.ServiceConfig, number int, sep string) string {
	if s.ContainerName != "" {
		return s.ContainerName
	}
	return strings.Join([]string{app, s.Name, strconv.Itoa(number)}, sep)
}

// ImageName is the image that a service runs: named, or that of its build.
func ImageName(app string, s types.ServiceConfig, sep string) string {
	if s.Image != "" {
		return s.Image
	}
	return app + sep + s.Name
}

// labels of a service's container, over those the person gave.
func (a *App) labels(s types.ServiceConfig) map[string]string {
	p := a.Project
	l := map[string]string{}
	maps.Copy(l, s.Labels)
	l[LabelApp], l[LabelService], l[LabelVersion] = p.Name, s.Name, ComposeVersion
	l[LabelWorkingDir], l[LabelConfigFiles], l[LabelOneOff] = p.WorkingDir, strings.Join(p.ComposeFiles, ","), "False"
	if len(a.EnvFiles) > 0 {
		l[LabelEnvFile] = strings.Join(a.EnvFiles, ",")
	}
	var on []string
	for _, name := range slices.Sorted(maps.Keys(s.DependsOn)) {
		d := s.DependsOn[name]
		on = append(on, fmt.Sprintf("%s:%s:%t", name, d.Condition, d.Restart))
	}
	l[LabelDependsOn] = strings.Join(on, ",")
	return l
}
