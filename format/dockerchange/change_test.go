package dockerchange_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/format/dockerchange"
)

type config = dockerspec.DockerOCIImageConfig

func TestChangesAreAppliedInOrder(t *testing.T) {
	oci := func(c ocispec.ImageConfig) config { return config{ImageConfig: c} }
	with := func(f func(*config)) config { var c config; f(&c); return c }
	for name, c := range map[string]struct {
		have    config
		changes []string
		want    config
	}{
		"a command in JSON":             {changes: []string{`CMD ["a","b"]`}, want: oci(ocispec.ImageConfig{Cmd: []string{"a", "b"}})},
		"a command for the shell":       {changes: []string{`CMD a b`}, want: oci(ocispec.ImageConfig{Cmd: []string{"/bin/sh", "-c", "a b"}})},
		"a command after another shell": {changes: []string{`SHELL ["/bin/bash","-c"]`, `CMD a b`}, want: with(func(c *config) { c.Shell = []string{"/bin/bash", "-c"}; c.Cmd = []string{"/bin/bash", "-c", "a b"} })},
		"an entrypoint":                 {changes: []string{`entrypoint ["x"]`}, want: oci(ocispec.ImageConfig{Entrypoint: []string{"x"}})},
		"variables, one with blanks":    {have: oci(ocispec.ImageConfig{Env: []string{"A=0", "Z=9"}}), changes: []string{`ENV A=1 B="two words" C=a\ b`}, want: oci(ocispec.ImageConfig{Env: []string{"A=1", "Z=9", "B=two words", "C=a b"}})},
		"a variable in the old form":    {changes: []string{`ENV A the rest = all`}, want: oci(ocispec.ImageConfig{Env: []string{"A=the rest = all"}})},
		"labels":                        {changes: []string{`LABEL a=b "c d"='e f'`}, want: oci(ocispec.ImageConfig{Labels: map[string]string{"a": "b", "c d": "e f"}})},
		"ports":                         {changes: []string{`EXPOSE 80 53/udp 8000-8001`}, want: oci(ocispec.ImageConfig{ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}})},
		"volumes":                       {changes: []string{`VOLUME /a /b`, `VOLUME ["/c d"]`}, want: oci(ocispec.ImageConfig{Volumes: map[string]struct{}{"/a": {}, "/b": {}, "/c d": {}}})},
		"a folder under the one before": {changes: []string{`WORKDIR /a`, `WORKDIR b/../c`}, want: oci(ocispec.ImageConfig{WorkingDir: "/a/c"})},
		"user and signal":               {changes: []string{"USER 1000:1000", "STOPSIGNAL SIGINT"}, want: oci(ocispec.ImageConfig{User: "1000:1000", StopSignal: "SIGINT"})},
		"several lines in one change":   {changes: []string{"USER a\n\nUSER b"}, want: oci(ocispec.ImageConfig{User: "b"})},
		"a trigger":                     {changes: []string{"ONBUILD RUN x"}, want: with(func(c *config) { c.OnBuild = []string{"RUN x"} })},
		"no health check":               {changes: []string{"HEALTHCHECK NONE"}, want: with(func(c *config) { c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}} })},
		"a health check with options": {changes: []string{"HEALTHCHECK --interval=5s --retries=3 CMD check me"}, want: with(func(c *config) {
			c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD-SHELL", "check me"}, Interval: 5 * time.Second, Retries: 3}
		})},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.have
			if err := dockerchange.Apply(&got, c.changes); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWrongChangesAreRefused(t *testing.T) {
	for _, change := range []string{
		"FROM x", "RUN x", "CMD", "ENV A", "ENV =x", `ENV A="x`, "LABEL a", "EXPOSE 99999", "EXPOSE x", `VOLUME ["a"`, `VOLUME [""]`, "SHELL sh",
		"HEALTHCHECK", "HEALTHCHECK --interval=x CMD y", "HEALTHCHECK --retries=-1 CMD y", "HEALTHCHECK --interval=-1s CMD y", "HEALTHCHECK RUN y", "ONBUILD FROM x", "ONBUILD ONBUILD RUN x", "STOPSIGNAL SIGNOPE x",
	} {
		var c config
		if err := dockerchange.Apply(&c, []string{change}); err == nil {
			t.Errorf("%q passes: %+v", change, c)
		}
	}
}

func FuzzApply(f *testing.F) {
	for _, seed := range []string{`CMD ["a"]`, "ENV A=b c='d e'", "LABEL \"x\"=y", "EXPOSE 1-3/udp", "VOLUME [\"/a\"]", "HEALTHCHECK --interval=1s CMD x", "WORKDIR ../..", "ONBUILD RUN x", "SHELL [\"a\"]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, change string) {
		var a, b config
		errA, errB := dockerchange.Apply(&a, []string{change}), dockerchange.Apply(&b, []string{change})
		if (errA == nil) != (errB == nil) || !cmp.Equal(a, b) {
			t.Fatal("the same change gives two results")
		}
		if a.WorkingDir != "" && a.WorkingDir[0] != '/' {
			t.Fatalf("folder %q is not absolute", a.WorkingDir)
		}
	})
}
