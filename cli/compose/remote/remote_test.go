package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/format/compose"
	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Count(m)) }

func load(t *testing.T, text string, remotes ...compose.Remote) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := compose.Load(context.Background(), compose.Options{WorkingDir: dir, ProjectName: "p", Environment: []string{}, Remotes: remotes})
	if err != nil {
		return "", err
	}
	out, err := compose.Write(a.Project, "yaml")
	return string(out), err
}

// repositoryOf serves a repository over HTTP, as any web server can (the
// "dumb" protocol), and returns its address.
func repositoryOf(t *testing.T, files map[string]string) string {
	t.Helper()
	kit.Need(t, "git")
	top := t.TempDir()
	work := filepath.Join(top, "work")
	for name, text := range files {
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bare := filepath.Join(top, "repo.git")
	for _, args := range [][]string{
		{"-C", work, "init", "-q", "-b", "main"}, {"-C", work, "add", "."},
		{"-C", work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "x"},
		{"clone", "-q", "--bare", work, bare}, {"-C", bare, "config", "uploadpack.allowAnySHA1InWant", "true"},
	} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	where, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(backend(strings.TrimSpace(string(where))+"/git-http-backend", top))
	t.Cleanup(srv.Close)
	return srv.URL + "/repo.git"
}

func TestAServiceComesFromAGitRepository(t *testing.T) {
	repo := repositoryOf(t, map[string]string{
		"compose.yaml":     "services:\n  top:\n    image: top\n    volumes: ['./d:/d']\n",
		"sub/compose.yaml": "services:\n  sub: {image: sub}\n",
		"bad/compose.yaml": "-> /etc/passwd",
	})
	cache := t.TempDir()
	out, err := load(t, "include:\n- "+repo+"\n- "+repo+"#main:sub\nservices:\n  own: {image: own}\n", NewGit(cache))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: top", "image: sub", "image: own", "source: " + cache + "/git/"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	for ref, want := range map[string]string{
		repo + "#none": "has no none", repo + "#main:bad": "there is no Compose file", repo + "#main:absent": "no such file",
	} {
		if _, err := load(t, "include:\n- "+ref+"\nservices:\n  own: {image: own}\n", NewGit(cache)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// registryOf serves one artifact behind a token.
func registryOf(t *testing.T, m v1.Manifest, blobs map[digest.Digest]string) string {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"good"}`)
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if b, ok := blobs[digest.Digest(name)]; ok {
			fmt.Fprint(w, b)
		} else if name == "v1" {
			_, _ = w.Write(text)
		} else {
			w.WriteHeader(http.StatusNotFound)
		}
	})
	return strings.TrimPrefix(srv.URL, "http://")
}

func layer(kind, text string, notes map[string]string) v1.Descriptor {
	return v1.Descriptor{MediaType: kind, Digest: digest.FromString(text), Size: int64(len(text)), Annotations: notes}
}

func TestAProjectComesFromARegistry(t *testing.T) {
	one, two, base := "services:\n  web:\n    extends: {file: base.yaml, service: b}\n", "services:\n  web: {image: second}\n", "services:\n  b: {image: first, user: from-base}\n"
	m := v1.Manifest{ArtifactType: typeProject, Layers: []v1.Descriptor{
		layer(typeFile, base, map[string]string{"com.docker.compose.extends": "true", "com.docker.compose.file": "base.yaml"}),
		layer(typeFile, one, map[string]string{"com.docker.compose.file": "compose.yaml"}),
		layer(typeFile, two, map[string]string{"com.docker.compose.file": "o.yaml"}),
	}}
	blobs := map[digest.Digest]string{digest.FromString(one): one, digest.FromString(two): two, digest.FromString(base): base}
	login := func(string) (string, string) { return "me", "secret" }
	host := registryOf(t, m, blobs)
	read := func(ref string, o *OCI) (string, error) {
		return load(t, "include:\n- "+ref+"\nservices:\n  own: {image: own}\n", o)
	}
	out, err := read("oci://"+host+"/a/b:v1", NewOCI(t.TempDir(), nil, login))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: second", "user: from-base", "image: own"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if _, err := read("oci://"+host+"/a/b:v2", NewOCI(t.TempDir(), nil, login)); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Errorf("a tag that is not there: %v", err)
	}
	if _, err := read("oci://"+host+"/a/b:v1", NewOCI(t.TempDir(), nil, func(string) (string, string) { return "", "" })); err == nil || !strings.Contains(err.Error(), "berth login") {
		t.Errorf("without a login: %v", err)
	}
	blobs[digest.FromString(one)] = "forged"
	if _, err := read("oci://"+host+"/a/b:v1", NewOCI(t.TempDir(), nil, login)); err == nil || !strings.Contains(err.Error(), "is not sha256:") {
		t.Errorf("a forged blob: %v", err)
	}
	m.Layers[0].Annotations["com.docker.compose.file"] = "../../evil"
	if _, err := read("oci://"+registryOf(t, m, blobs)+"/a/b:v1", NewOCI(t.TempDir(), nil, login)); err == nil || !strings.Contains(err.Error(), `"../../evil"`) {
		t.Errorf("a path out of the folder: %v", err)
	}
}
