package cli

import "testing"

func TestTextsOfTheDockerTreeNameThisProgram(t *testing.T) {
	for text, want := range map[string]string{
		"docker container ls, docker ps":                       "berth container ls, berth ps",
		"\tdocker cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH": "\tberth cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
		`default context set with "docker context use"`:        `default context set with "berth context use"`,
		"Build an image from a Dockerfile":                     "Build an image from a Dockerfile",
		"Search Docker Hub for images":                         "Search Docker Hub for images",
		"set the docker endpoint":                              "set the docker endpoint",
		"https://docs.docker.com/go/formatting/":               "https://docs.docker.com/go/formatting/",
		"Show the Docker version information":                  "Show version information",
		"the Docker host's cgroup":                             "the host's cgroup",
	} {
		if got := ourWords(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
