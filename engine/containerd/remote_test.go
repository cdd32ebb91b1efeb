package containerd_test

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/core/image"
)

func TestAnImageComesBackFromARegistryAsItWent(t *testing.T) {
	l := library(t)
	address := registry(t, "")
	one := layer(t, entry{name: "one", body: "first"}, entry{name: "both", body: "below"})
	two := layer(t, entry{name: "two", body: strings.Repeat("second", 1000)}, entry{name: "both", body: "above"}, entry{name: ".wh.one"})
	ref := address + "/team/round:v1"
	id := load(t, l, ref, map[string]any{"Cmd": []string{"x"}}, one, two)

	var said words
	if err := l.Push(t.Context(), ref, image.PushOptions{}, said.report); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The push refers to repository [" + address + "/team/round]", ": Preparing", ": Pushed", "v1: digest: sha256:"} {
		if !said.has(want) {
			t.Errorf("push says no %q:\n%s", want, strings.Join(said, "\n"))
		}
	}
	said = nil
	if err := l.Push(t.Context(), ref, image.PushOptions{}, said.report); err != nil {
		t.Fatal(err)
	}
	if !said.has("Layer already exists") {
		t.Errorf("a second push sends layers again:\n%s", strings.Join(said, "\n"))
	}
	other := address + "/team/other:v2"
	if err := l.Tag(t.Context(), ref, other); err != nil {
		t.Fatal(err)
	}
	said = nil
	if err := l.Push(t.Context(), other, image.PushOptions{}, said.report); err != nil {
		t.Fatal(err)
	}
	if !said.has("Mounted from team/round") {
		t.Errorf("layers are not mounted from the other repository:\n%s", strings.Join(said, "\n"))
	}
	if _, err := l.Remove(t.Context(), id, true, true, nil); err != nil {
		t.Fatal(err)
	}

	said = nil
	if err := l.Pull(t.Context(), ref, image.PullOptions{}, said.report); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"v1: Pulling from team/round", "Pulling fs layer", "Verifying Checksum", "Download complete", "Extracting", "Pull complete", "Digest: sha256:", "Status: Downloaded newer image for " + ref} {
		if !said.has(want) {
			t.Errorf("pull says no %q:\n%s", want, strings.Join(said, "\n"))
		}
	}
	i, err := l.Get(t.Context(), ref, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if i.ID != id {
		t.Errorf("the image came back as %s, was %s", i.ID, id)
	}
	if got := content(t, l, i.ID, "both"); got != "above" {
		t.Errorf("both = %q", got)
	}
	if len(i.RepoDigests) != 1 || !strings.HasPrefix(i.RepoDigests[0], address+"/team/round@sha256:") {
		t.Errorf("digests %v", i.RepoDigests)
	}
	said = nil
	if err := l.Pull(t.Context(), ref, image.PullOptions{}, said.report); err != nil {
		t.Fatal(err)
	}
	if !said.has("Already exists") || !said.has("Status: Image is up to date for "+ref) {
		t.Errorf("a second pull says\n%s", strings.Join(said, "\n"))
	}
	if err := l.Pull(t.Context(), i.RepoDigests[0], image.PullOptions{}, said.report); err != nil {
		t.Fatal("by digest:", err)
	}
	info, err := l.Distribution(t.Context(), ref, nil)
	if err != nil || len(info.Platforms) != 1 || info.Platforms[0].Architecture != "amd64" {
		t.Errorf("distribution %+v %v", info, err)
	}
}

func TestPullTellsWhatIsNotThere(t *testing.T) {
	l := library(t)
	address := registry(t, "")
	err := l.Pull(t.Context(), address+"/none:v1", image.PullOptions{}, func(image.Progress) {})
	if want := "manifest for " + address + "/none:v1 not found: manifest unknown: manifest unknown"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	err = l.Push(t.Context(), address+"/none:v1", image.PushOptions{}, func(image.Progress) {})
	if want := "An image does not exist locally with the tag: " + address + "/none"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
