package compose

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzLoad reads any text as a project: it is read or refused, in bounded
// time, and what is read can be written and read again.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"services:\n  web:\n    image: nginx:${TAG:-1}\n    ports: ['80:80/udp']\n    volumes: [a:/b:ro]\nvolumes: {a: }\n",
		"web:\n  image: x\n  links: [db]\n  net: host\n  volumes: ['d:/d']\ndb:\n  build: .\n",
		"x-a: &a {image: x}\nservices:\n  b: {<<: *a, extends: c}\n  c: {image: !reset null, build: {context: .}}\n",
		"include: [{path: [a, b]}]\nname: ${X?no}\n", "a: *a\n", "- 1\n", "services: &s\n  a: *s\n", "---\nservices: {}\n---\n",
		"jobs:\n  j: {image: x, triggers: {schedule: ['@daily']}}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		file := filepath.Join(dir, "compose.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		o := Options{Files: []string{file}, ProjectName: "p", WorkingDir: dir, Environment: []string{}}
		a, err := Load(context.Background(), o)
		if err != nil {
			return
		}
		again, err := Write(a.Project, "yaml")
		if err != nil {
			t.Fatalf("cannot be written: %v", err)
		}
		if len(a.Project.Jobs) > 0 {
			return // compose-go writes a name into each job that its own schema refuses, as docker compose 5.6.0 does
		}
		if err := os.WriteFile(file, again, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(context.Background(), o); err != nil {
			t.Errorf("cannot be read again: %v\n%s", err, again)
		}
	})
}

// FuzzParse bounds any text.
func FuzzParse(f *testing.F) {
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("a: {b: [c, {d: e}]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		docs, err := parse("f", text)
		if err != nil {
			return
		}
		for _, d := range docs {
			if err := checkKeys("f", d); err == nil {
				references(d)
			}
		}
	})
}
