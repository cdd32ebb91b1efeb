package corpus

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/format/compose"
)

// The daemon hashes what it reads back from a document; docker compose hashes
// what it has read from the files. Both must see the same services.
func TestADocumentKeepsEveryServiceAsItWasRead(t *testing.T) {
	services := 0
	for _, f := range append(list(t), "testdata/every.yaml") {
		a, err := compose.Load(context.Background(), compose.Options{Files: []string{f}, Environment: []string{"HOME=/root", "PWD=/"}})
		if err != nil {
			if f == "testdata/every.yaml" {
				t.Error(err)
			}
			continue // TestCorpusIsRead looks at why
		}
		d, err := app.NewDocument(a)
		if err != nil {
			continue // a secret of a variable that is not set
		}
		b, err := d.App()
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		for name, s := range a.Project.Services {
			services++
			if before, after := text(t, s), text(t, b.Project.Services[name]); before != after {
				t.Errorf("%s: service %s changes on its way:\n%s", f, name, cmp.Diff(before, after))
			}
		}
		for name, n := range a.Project.Networks {
			if before, after := text(t, n), text(t, b.Project.Networks[name]); before != after {
				t.Errorf("%s: network %s changes on its way:\n%s", f, name, cmp.Diff(before, after))
			}
		}
		for name, v := range a.Project.Volumes {
			if before, after := text(t, v), text(t, b.Project.Volumes[name]); before != after {
				t.Errorf("%s: volume %s changes on its way:\n%s", f, name, cmp.Diff(before, after))
			}
		}
	}
	if services < 500 {
		t.Errorf("only %d services were looked at", services)
	}
}

func text(t *testing.T, v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
