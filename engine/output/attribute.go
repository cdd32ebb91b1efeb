package output

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

const (
	blankID    = container.ID("0000000000000000000000000000000000000000000000000000000000000000")
	defaultTag = "{{.ID}}" // of remote logs
)

// attributes are what a log tells of its container beside the lines. rename
// gives a key the shape a driver wants; nil keeps it.
func attributes(cfg container.LogConfig, c container.Container, rename func(string) string) map[string]string {
	attrs := map[string]string{}
	take := func(key, value string) {
		if rename != nil {
			key = rename(key)
		}
		if key != "" {
			attrs[key] = value
		}
	}
	wanted := func(list, pattern string) func(string) bool {
		names := strings.Split(list, ",")
		re, err := regexp.Compile(pattern)
		return func(k string) bool {
			return slices.Contains(names, k) || pattern != "" && err == nil && re.MatchString(k)
		}
	}
	label := wanted(cfg.Options["labels"], cfg.Options["labels-regex"])
	for k, v := range c.Spec.Labels {
		if label(k) {
			take(k, v)
		}
	}
	env := wanted(cfg.Options["env"], cfg.Options["env-regex"])
	for _, e := range c.Spec.Env {
		if k, v, ok := strings.Cut(e, "="); ok && env(k) {
			take(k, v)
		}
	}
	return attrs
}

// fileAttributes are those of logs in files: they have a tag only where one is asked for.
func fileAttributes(cfg container.LogConfig, c container.Container) map[string]string {
	attrs := attributes(cfg, c, nil)
	if tag, err := expandTag(c, cfg.Options["tag"]); err == nil && tag != "" {
		attrs["tag"] = tag
	}
	if len(attrs) == 0 {
		return nil
	}
	return attrs
}

// tagInfo is what a tag's template may name.
type tagInfo struct {
	Config                                                     map[string]string
	ContainerID, ContainerName, ContainerEntrypoint            string
	ContainerArgs                                              []string
	ContainerImageID, ContainerImageName                       string
	ContainerCreated                                           time.Time
	ContainerEnv                                               []string
	ContainerLabels                                            map[string]string
	LogPath, DaemonName                                        string
	ID, FullID, Name, ImageID, ImageFullID, ImageName, Command string
}

// Hostname is the host's, for templates.
func (tagInfo) Hostname() (string, error) { return os.Hostname() }

func infoOf(c container.Container) tagInfo {
	t := tagInfo{
		Config: c.Spec.Log.Options, ContainerID: string(c.ID), ContainerName: "/" + c.Name, ContainerEntrypoint: c.Path, ContainerArgs: c.Args,
		ContainerImageID: c.ImageID, ContainerImageName: c.Spec.Image, ContainerCreated: c.Created, ContainerEnv: c.Spec.Env,
		ContainerLabels: c.Spec.Labels, LogPath: c.LogPath, DaemonName: "docker",
		ID: c.ID.Short(), FullID: string(c.ID), Name: c.Name, ImageFullID: c.ImageID, ImageName: c.Spec.Image,
		Command: strings.Join(append([]string{c.Path}, c.Args...), " "),
	}
	t.ImageID = c.ImageID[:min(len(c.ImageID), 12)]
	return t
}

// expandTag fills a tag's template. The words are docker's.
func expandTag(c container.Container, text string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New("log-tag").Funcs(template.FuncMap{
		"json": func(v any) string {
			b := &bytes.Buffer{}
			e := json.NewEncoder(b)
			e.SetEscapeHTML(false)
			_ = e.Encode(v) // what templates hold can be encoded
			return strings.TrimSpace(b.String())
		},
		"split": strings.Split, "join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
		"title": func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
		"pad": func(s string, before, after int) string {
			if s == "" || before < 0 || after < 0 || before+after > maxLine {
				return s
			}
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string { return s[:max(0, min(n, len(s)))] },
	}).Parse(text)
	if err != nil {
		return "", fault.Invalidf("%w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, infoOf(c)); err != nil {
		return "", fault.Invalidf("%w", err)
	}
	return b.String(), nil
}
