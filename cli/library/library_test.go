package library

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/library/mirror"
)

func TestAnUnknownNameIsAnsweredWithWhatWasMeant(t *testing.T) {
	t.Setenv("LC_ALL", "C")
	for name, want := range map[string]string{
		"postgress":   "did you mean postgres?",
		"mysq":        "did you mean mysql?",
		"postgres:17": "leave the tag out (berth library build postgres)",
		"nothing:1":   `no image "nothing:1": see 'berth library ls'`,
		"zzzzzzz":     "see 'berth library ls'",
	} {
		if _, err := new(noun).named([]string{name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, should say %s", name, err, want)
		}
	}
	if _, err := (&noun{dir: t.TempDir()}).named(nil); err == nil || !strings.Contains(err.Error(), "no recipes in") {
		t.Errorf("a folder without recipes: %v", err)
	}
	if !Has("mysql") || Has("postgress") {
		t.Error("an alias is of the library, a mistake is not")
	}
}

func TestNamesAreCompleted(t *testing.T) {
	n := new(noun)
	offered := func(most int, args ...string) []string {
		list, directive := n.completeNames(most)(nil, args, "")
		if directive != cobra.ShellCompDirectiveNoFileComp {
			t.Errorf("%v: directive %v", args, directive)
		}
		for i := range list {
			list[i], _, _ = strings.Cut(list[i], "\t")
		}
		return list
	}
	if list := offered(0, "redis"); !slices.Contains(list, "mysql") || slices.Contains(list, "redis") {
		t.Error(list)
	}
	if list := offered(1, "redis"); list != nil {
		t.Error(list)
	}
}

func TestAFailureOfAMirrorSaysWhatToDo(t *testing.T) {
	t.Setenv("LC_ALL", "C")
	other := errors.New("other")
	for _, c := range []struct {
		err  error
		want string
	}{
		{mirror.ErrOffline, "berth library fetch"},
		{mirror.ErrNoAnswer, "--mirror"},
		{syscall.ENOSPC, "TMPDIR"},
		{other, "other"},
	} {
		got := advise(fmt.Errorf("make redis: %w", c.err))
		if !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.want) {
			t.Errorf("%v: %v", c.err, got)
		}
	}
	if got := advise(nil); got != nil {
		t.Error(got)
	}
}
