package include

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

func reader(files map[string]string) func(string) ([]byte, error) {
	return func(p string) ([]byte, error) {
		t, ok := files[p]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return []byte(t), nil
	}
}

func TestIncludeStandsForTheLinesOfAnotherFile(t *testing.T) {
	files := map[string]string{"base.docker": "FROM busybox\nINCLUDE sub/env.docker", "sub/env.docker": "ENV A=b\nINCLUDE more\n", "sub/more": "LABEL x=y"}
	got, err := Expand("Dockerfile", []byte("# syntax=docker/dockerfile:1\nINCLUDE base.docker\nRUN <<E\nINCLUDE this stays\nE\ninclude sub/more\n"), reader(files))
	if err != nil {
		t.Fatal(err)
	}
	want := "# syntax=docker/dockerfile:1\nFROM busybox\nENV A=b\nLABEL x=y\nRUN <<E\nINCLUDE this stays\nE\nLABEL x=y\n"
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestIncludeSaysWhereItCannotBeFollowed(t *testing.T) {
	files := map[string]string{"self": "INCLUDE self\n", "a": "RUN x\nINCLUDE b\n", "up": "x"}
	for text, want := range map[string]string{
		"FROM x\nINCLUDE nothere\n": "Dockerfile:2: INCLUDE: nothere: file does not exist",
		"INCLUDE ../up\n":           "Dockerfile:1: INCLUDE: ../up leaves the folder of the Dockerfile",
		"INCLUDE /etc/passwd\n":     "Dockerfile:1: INCLUDE: /etc/passwd leaves the folder of the Dockerfile",
		"INCLUDE self\n":            "Dockerfile:1: INCLUDE: self:1: INCLUDE: self includes itself",
		"FROM x\n\n\nINCLUDE a\n":   "Dockerfile:4: INCLUDE: a:2: INCLUDE: b: file does not exist",
		"INCLUDE $X\n":              "is no plain path",
		"FROM x\nINCLUDE one two\n": "is no plain path",
	} {
		_, err := Expand("Dockerfile", []byte(text), reader(files))
		var at *Error
		if err == nil || !errors.As(err, &at) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestIncludeHasLimits(t *testing.T) {
	many := strings.Repeat("INCLUDE a\n", maxFiles+1)
	if _, err := Expand("Dockerfile", []byte(many), reader(map[string]string{"a": "RUN x\n"})); err == nil {
		t.Error("no limit of files")
	}
	big := map[string]string{"a": "RUN " + strings.Repeat("x", maxBytes)}
	if _, err := Expand("Dockerfile", []byte("INCLUDE a\n"), reader(big)); err == nil {
		t.Error("no limit of bytes")
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("FROM x\nINCLUDE a\n", "RUN y\nINCLUDE b\n")
	f.Add("# escape=`\nINCLUDE `\na\n", "INCLUDE Dockerfile")
	f.Add("RUN <<E\nINCLUDE a\n", "x")
	f.Fuzz(func(t *testing.T, text, a string) {
		out, err := Expand("Dockerfile", []byte(text), reader(map[string]string{"a": a}))
		if err == nil && len(out) > 2*maxBytes {
			t.Error("grew without bound")
		}
	})
}
