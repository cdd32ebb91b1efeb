// Package rule holds the rules of the repository as ordinary tests.
package rule

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/berth-project/berth/"

// Imports point down: each folder may import those to its right, and nothing
// else of the module (docs/design/words.md, "Folders").
var may = map[string][]string{
	"cmd":     {"app", "cli", "engine/keeper/serve"},
	"app":     {"app", "door", "engine", "store", "format", "core", "lib"},
	"cli":     {"cli", "library", "core", "format", "lib"},
	"door":    {"core", "lib"},
	"engine":  {"format", "core", "lib"},
	"store":   {"core", "lib"},
	"format":  {"format", "core", "lib"},
	"core":    {"core", "lib"},
	"lib":     {"lib"},
	"library": {"format"},
	"test":    {"test", "lib", "core", "format", "cli", "app", "engine"},
}

// forbidden packages of others, by the folder that must not know them.
var forbidden = map[string][]string{
	"core": {"net/http", "database/sql", "os/exec", "github.com/moby/moby/", "github.com/containerd/containerd/", "github.com/docker/"},
	"door": {"database/sql", "os/exec", "github.com/containerd/containerd/"},
	"":     {"github.com/moby/moby/v2", "k8s.io/"},
}

func TestImportsPointDown(t *testing.T) {
	for path, imports := range packages(t) {
		folder, rest, _ := strings.Cut(path, "/")
		allowed, known := may[folder]
		if !known {
			t.Errorf("%s: the folder %q is not in the table", path, folder)
			continue
		}
		for _, i := range imports {
			own, ours := strings.CutPrefix(i, module)
			for _, where := range []string{folder, ""} {
				for _, bad := range forbidden[where] {
					if !ours && (i == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(i, bad)) {
						t.Errorf("%s must not import %s", path, i)
					}
				}
			}
			if !ours {
				continue
			}
			ok := sibling(folder, rest, own)
			for _, a := range allowed {
				ok = ok || own == a || strings.HasPrefix(own, a+"/")
			}
			if !ok {
				t.Errorf("%s must not import %s", path, own)
			}
		}
	}
}

// sibling allows a part of an engine or a door its own subpackages, and doors their kit.
func sibling(folder, rest, own string) bool {
	part, _, _ := strings.Cut(rest, "/")
	prefix := folder + "/" + part
	return (folder == "engine" || folder == "door") && (own == prefix || strings.HasPrefix(own, prefix+"/") || own == "door/kit" && folder == "door")
}

func packages(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p.Imports
	}
	return all
}
