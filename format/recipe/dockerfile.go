package recipe

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/berth-project/berth/format/dockerchange"
)

// install is the one way to install packages: what every builder understands
// and ours does without a network in the step.
var install = regexp.MustCompile(`^apt-get update && apt-get install -y --no-install-recommends ([a-z0-9+. -]+)$`)

// ParseDockerfile reads stages. An instruction that the library does not use
// is an error that names its line.
func ParseDockerfile(text []byte) ([]Stage, error) {
	var stages []Stage
	lines, err := logical(string(text))
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		fail := func(format string, args ...any) ([]Stage, error) {
			return nil, fmt.Errorf("line %d: %w", l.number, fmt.Errorf(format, args...))
		}
		word, rest, _ := strings.Cut(l.text, " ")
		word, rest = strings.ToUpper(word), strings.TrimSpace(rest)
		if word == "FROM" {
			s, err := parseFrom(rest)
			if err != nil {
				return fail("%w", err)
			}
			stages = append(stages, s)
			continue
		}
		if len(stages) == 0 {
			return fail("%s before the first FROM", word)
		}
		s := &stages[len(stages)-1]
		switch word {
		case "ADD":
			if rest != "root.tar /" || s.From != "scratch" || len(s.Steps) > 0 {
				return fail("ADD takes only root.tar, the Debian root, first after FROM scratch")
			}
			s.Steps = append(s.Steps, Step{Root: true})
		case "COPY":
			step, err := parseCopy(rest, stages)
			if err != nil {
				return fail("%w", err)
			}
			s.Steps = append(s.Steps, step)
		case "RUN":
			if s.From == "scratch" && (len(s.Steps) == 0 || !s.Steps[0].Root) {
				return fail("RUN needs a root to run in")
			}
			if slices.ContainsFunc(s.Steps, func(x Step) bool { return x.Copy != nil }) {
				return fail("RUN does not see what COPY --from brings: copy after it")
			}
			if m := install.FindStringSubmatch(rest); m != nil {
				packages := strings.Fields(m[1])
				for _, p := range packages {
					if !packageForm.MatchString(p) {
						return fail("RUN: %q is not a package's name", p)
					}
				}
				s.Steps = append(s.Steps, Step{Install: packages})
				continue
			}
			if strings.Contains(rest, "apt-get") || strings.HasPrefix(rest, "--") || strings.HasPrefix(rest, "<<") || strings.HasPrefix(rest, "[") || rest == "" {
				return fail("RUN takes a command for the shell, or exactly: apt-get update && apt-get install -y --no-install-recommends PACKAGE...")
			}
			s.Steps = append(s.Steps, Step{Run: rest})
		case "CMD", "ENTRYPOINT", "ENV", "LABEL", "EXPOSE", "VOLUME", "USER", "WORKDIR", "STOPSIGNAL", "HEALTHCHECK", "SHELL":
			if word != "HEALTHCHECK" && word != "CMD" && strings.Contains(rest, "$") {
				return fail("%s: variables are not expanded in recipes", word)
			}
			if err := dockerchange.Apply(&dockerspec.DockerOCIImageConfig{}, []string{l.text}); err != nil {
				return fail("%w", err)
			}
			s.Changes = append(s.Changes, l.text)
		default:
			return fail("%s is not used in recipes", word)
		}
	}
	if len(stages) == 0 {
		return nil, fmt.Errorf("no FROM")
	}
	return stages, nil
}

// Config is the configuration that a stage gives to an image made from base.
func (s Stage) Config(base dockerspec.DockerOCIImageConfig) (dockerspec.DockerOCIImageConfig, error) {
	err := dockerchange.Apply(&base, s.Changes)
	return base, err
}

func parseFrom(rest string) (Stage, error) {
	f := strings.Fields(rest)
	switch {
	case len(f) == 1 && nameForm.MatchString(f[0]):
		return Stage{From: f[0]}, nil
	case len(f) == 3 && strings.EqualFold(f[1], "AS") && nameForm.MatchString(f[0]) && nameForm.MatchString(f[2]):
		return Stage{From: f[0], Name: f[2]}, nil
	}
	return Stage{}, fmt.Errorf("FROM takes an image of the library, or scratch, and AS name")
}

func parseCopy(rest string, stages []Stage) (Step, error) {
	f := strings.Fields(rest)
	if len(f) == 2 && f[0] == "rootfs/" && f[1] == "/" {
		return Step{Rootfs: true}, nil
	}
	if len(f) != 3 || !strings.HasPrefix(f[0], "--from=") {
		return Step{}, fmt.Errorf("COPY takes rootfs/ / or --from=STAGE FROM TO")
	}
	c := &Copy{Stage: strings.TrimPrefix(f[0], "--from="), From: path.Clean(f[1]), To: path.Clean(f[2])}
	if !path.IsAbs(f[1]) || !path.IsAbs(f[2]) {
		return Step{}, fmt.Errorf("COPY --from takes absolute paths")
	}
	if strings.HasSuffix(f[2], "/") && c.To != "/" && !strings.HasSuffix(f[1], "/") {
		c.To = path.Join(c.To, path.Base(c.From))
	}
	for _, s := range stages[:len(stages)-1] {
		if s.Name == c.Stage && s.Name != "" {
			return Step{Copy: c}, nil
		}
	}
	return Step{}, fmt.Errorf("COPY --from: no earlier stage %q", c.Stage)
}

type line struct {
	number int
	text   string
}

// logical joins continued lines and drops comments and empty lines.
func logical(text string) ([]line, error) {
	var out []line
	open := false
	for i, raw := range strings.Split(text, "\n") {
		s := strings.TrimSpace(raw)
		if strings.HasPrefix(s, "#") || s == "" && !open {
			continue
		}
		more := strings.HasSuffix(s, `\`)
		s = strings.TrimSpace(strings.TrimSuffix(s, `\`))
		if open {
			if s != "" {
				out[len(out)-1].text += " " + s
			}
		} else if s != "" {
			out = append(out, line{i + 1, s})
		}
		open = more && (open || s != "")
	}
	if open && len(out) > 0 {
		return nil, fmt.Errorf("line %d: the last line is continued", out[len(out)-1].number)
	}
	return out, nil
}
