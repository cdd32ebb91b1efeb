package recipe_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/format/recipe"
	"github.com/berth-project/berth/library"
)

func TestADockerfileIsRead(t *testing.T) {
	got, err := recipe.ParseDockerfile([]byte(`# comment
FROM debian AS root
RUN apt-get update && apt-get install -y --no-install-recommends a1 b2 \
    c3
RUN mkdir /out && \
    # a comment between
    cp /bin/x /out
FROM scratch
COPY --from=root /out /
COPY rootfs/ /
ENV A=1
CMD ["/x"]
`))
	want := []recipe.Stage{
		{Name: "root", From: "debian", Steps: []recipe.Step{{Install: []string{"a1", "b2", "c3"}}, {Run: "mkdir /out && cp /bin/x /out"}}},
		{From: "scratch", Steps: []recipe.Step{{Copy: &recipe.Copy{Stage: "root", From: "/out", To: "/"}}, {Rootfs: true}}, Changes: []string{"ENV A=1", `CMD ["/x"]`}},
	}
	if err != nil || !cmp.Equal(got, want) {
		t.Error(err, cmp.Diff(want, got))
	}
}

func TestABadDockerfileNamesItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"RUN x":                              "line 1: RUN before",
		"FROM debian\nARG x":                 "line 2: ARG",
		"FROM debian\nRUN apt-get install x": "line 2: RUN takes",
		"FROM scratch\nRUN x":                "line 2: RUN needs a root",
		"FROM debian\nCOPY a b":              "line 2: COPY",
		"FROM debian\nCOPY --from=x /a /b":   `no earlier stage "x"`,
		"FROM debian AS r\nFROM debian\nCOPY --from=r /a /b\nRUN /b": "line 4: RUN does not see",
		"FROM https://evil/x":                 "line 1: FROM",
		"FROM debian\nENV A=$B":               "line 2: ENV",
		"FROM debian\nRUN a \\":               "continued",
		"FROM debian\nADD http://x /":         "line 2: ADD",
		"FROM debian\nRUN --mount=type=x cmd": "line 2: RUN takes",
		"":                                    "no FROM",
	} {
		if _, err := recipe.ParseDockerfile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestEveryRecipeOfTheLibraryIsWhole(t *testing.T) {
	names, err := recipe.Names(library.Files)
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		r, err := recipe.Read(library.Files, name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, s := range r.Stages {
			if s.From == "scratch" {
				continue
			}
			if _, err := recipe.Read(library.Files, s.From); err != nil {
				t.Errorf("%s: FROM %s: %v", name, s.From, err)
			}
		}
		c := r.Manifest.Check
		if len(c.Ready) == 0 && len(c.OneShot) == 0 {
			t.Errorf("%s: nothing shows that it starts", name)
		}
		if len(c.Ready) > 0 && c.Log == "" {
			t.Errorf("%s: nothing shows that it logs", name)
		}
	}
}

func FuzzDockerfile(f *testing.F) {
	f.Add([]byte("FROM debian\nRUN x \\\n y\nCMD [\"a\"]\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = recipe.ParseDockerfile(b) })
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"description":{"en":"a","es":"b"},"licence":"MIT","limit_mb":1}`))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = recipe.ParseManifest(b) })
}
