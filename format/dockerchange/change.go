// Package dockerchange reads the Dockerfile instructions that `docker commit`
// and `docker import` take with --change, and applies them to an image's
// configuration. It is a pure function of text.
package dockerchange

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/docker/go-connections/nat"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// Apply changes c by instructions, in order (Dockerfile reference of docker,
// only those that need no build).
func Apply(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	commanded := false // an entry point resets the command that was before the changes
	for _, change := range changes {
		for _, line := range strings.Split(change, "\n") {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			if err := apply(c, line); err != nil {
				return err
			}
			switch word, _, _ := strings.Cut(line, " "); strings.ToUpper(word) {
			case "CMD":
				commanded = true
			case "ENTRYPOINT":
				if !commanded {
					c.Cmd = nil
				}
			}
		}
	}
	return nil
}

func apply(c *dockerspec.DockerOCIImageConfig, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	instruction := strings.ToUpper(word)
	if rest == "" {
		return fmt.Errorf("%s requires at least one argument", instruction)
	}
	switch instruction {
	case "CMD":
		c.Cmd = command(rest, c.Shell)
	case "ENTRYPOINT":
		c.Entrypoint = command(rest, c.Shell)
	case "SHELL":
		var shell []string
		if json.Unmarshal([]byte(rest), &shell) != nil || len(shell) == 0 {
			return fmt.Errorf("SHELL requires the arguments to be in JSON form")
		}
		c.Shell = shell
	case "ENV", "LABEL":
		pairs, err := pairs(rest)
		if err != nil {
			return fmt.Errorf("%s: %w", instruction, err)
		}
		for _, p := range pairs {
			if instruction == "ENV" {
				c.Env = setEnv(c.Env, p[0], p[1])
				continue
			}
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[p[0]] = p[1]
		}
	case "EXPOSE":
		ports, _, err := nat.ParsePortSpecs(strings.Fields(rest))
		if err != nil {
			return fmt.Errorf("EXPOSE: %w", err)
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for p := range ports {
			c.ExposedPorts[string(p)] = struct{}{}
		}
	case "VOLUME":
		list := strings.Fields(rest)
		if strings.HasPrefix(rest, "[") {
			if err := json.Unmarshal([]byte(rest), &list); err != nil {
				return fmt.Errorf("VOLUME: %w", err)
			}
		}
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range list {
			if v == "" {
				return fmt.Errorf("VOLUME specified can not be an empty string")
			}
			c.Volumes[v] = struct{}{}
		}
	case "USER":
		c.User = rest
	case "WORKDIR":
		if !path.IsAbs(rest) {
			rest = path.Join("/", c.WorkingDir, rest)
		}
		c.WorkingDir = path.Clean(rest)
	case "STOPSIGNAL":
		if strings.ContainsAny(rest, " \t") {
			return fmt.Errorf("STOPSIGNAL requires exactly one argument")
		}
		c.StopSignal = rest
	case "ONBUILD":
		trigger, _, _ := strings.Cut(rest, " ")
		switch trigger = strings.ToUpper(trigger); trigger {
		case "ONBUILD":
			return fmt.Errorf("ONBUILD ONBUILD: chaining isn't allowed")
		case "MAINTAINER", "FROM":
			return fmt.Errorf("%s isn't allowed as an ONBUILD trigger", trigger)
		}
		c.OnBuild = append(c.OnBuild, rest)
	case "HEALTHCHECK":
		return health(c, rest)
	default:
		return fmt.Errorf("%s is not a valid change command", strings.ToLower(word))
	}
	return nil
}

func command(rest string, shell []string) []string {
	var list []string
	if strings.HasPrefix(rest, "[") && json.Unmarshal([]byte(rest), &list) == nil {
		return list
	}
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(append([]string(nil), shell...), rest)
}

func setEnv(env []string, key, value string) []string {
	for i, e := range env {
		if k, _, _ := strings.Cut(e, "="); k == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// pairs reads `key=value key2="a b"` or the old form `key the whole rest`.
func pairs(s string) ([][2]string, error) {
	words, err := split(s)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(words[0], "=") {
		key, value, _ := strings.Cut(s, " ")
		if strings.TrimSpace(value) == "" {
			return nil, fmt.Errorf("must have two arguments")
		}
		return [][2]string{{key, strings.TrimSpace(value)}}, nil
	}
	var out [][2]string
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("can't find = in %q: must be of the form: name=value", w)
		}
		out = append(out, [2]string{key, value})
	}
	return out, nil
}

// split cuts at blanks outside quotes, taking quotes and escapes away.
func split(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	in, escaped := false, false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, in = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("unexpected end of statement while looking for matching quote")
	}
	if in {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("must have arguments")
	}
	return words, nil
}

func health(c *dockerspec.DockerOCIImageConfig, rest string) error {
	if strings.EqualFold(rest, "NONE") {
		c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
		return nil
	}
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(rest, "--") {
		flag, after, _ := strings.Cut(rest, " ")
		rest = strings.TrimSpace(after)
		name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if name == "retries" {
			if _, err := fmt.Sscan(value, &h.Retries); err != nil {
				return fmt.Errorf("HEALTHCHECK --retries: %w", err)
			}
			if h.Retries < 0 {
				return fmt.Errorf("--retries cannot be negative: %d", h.Retries)
			}
			continue
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("HEALTHCHECK --%s: %w", name, err)
		}
		if d != 0 && d < time.Millisecond {
			return fmt.Errorf("--%s cannot be less than %s", name, time.Millisecond)
		}
		switch name {
		case "interval":
			h.Interval = d
		case "timeout":
			h.Timeout = d
		case "start-period":
			h.StartPeriod = d
		case "start-interval":
			h.StartInterval = d
		default:
			return fmt.Errorf("unknown flag: %s", name)
		}
	}
	word, cmd, _ := strings.Cut(rest, " ")
	if !strings.EqualFold(word, "CMD") || strings.TrimSpace(cmd) == "" {
		return fmt.Errorf("unknown type %q in HEALTHCHECK (try CMD)", word)
	}
	cmd = strings.TrimSpace(cmd)
	var list []string
	if strings.HasPrefix(cmd, "[") && json.Unmarshal([]byte(cmd), &list) == nil {
		h.Test = append([]string{"CMD"}, list...)
	} else {
		h.Test = []string{"CMD-SHELL", cmd}
	}
	c.Healthcheck = h
	return nil
}
