// Package corpus reads the Compose files of public projects and says of each
// whether it is accepted, or refused for a reason that docker compose 5.6.0 or
// docker-compose 1.29.2 shares.
package corpus

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth/format/compose"
	"github.com/berth-project/berth/test/kit"
)

// folder is where the corpus lies, beside the project's root.
const folder = "../../../shared/corpus/compose"

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// row is one line of the table.
type row struct {
	file         string
	ours, v5, v1 string // "" where accepted, else why not
	same         bool   // our config is v5's to the byte
	explained    bool
	difference   string
}

// TestCorpus is long, as it asks two other programs about each file:
// `make test-corpus` runs it.
func TestCorpus(t *testing.T) {
	if os.Getenv("BERTH_TEST_CORPUS") == "" {
		kit.Skip(t, "BERTH_TEST_CORPUS is not set (make test-corpus)")
	}
	files := list(t)
	plugin := kit.Tool(t, "docker-compose")
	kit.Need(t, "docker-compose")
	rows := make([]row, len(files))
	var wg sync.WaitGroup
	next := make(chan int)
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				rows[i] = examine(files[i], plugin)
			}
		}()
	}
	for i := range files {
		next <- i
	}
	close(next)
	wg.Wait()
	report(t, rows)
}

// TestCorpusIsRead is the short part: no file crashes the reader, and what it
// refuses it says with a file and a reason.
func TestCorpusIsRead(t *testing.T) {
	accepted, files := 0, list(t)
	for _, f := range files {
		_, err := read(f)
		if err == nil {
			accepted++
			continue
		}
		if why := kind(err.Error()); why == "" {
			t.Errorf("%s: a reason of no known kind: %v", f, err)
		}
	}
	t.Logf("%d of %d files accepted", accepted, len(files))
	if accepted*10 < len(files)*8 {
		t.Errorf("only %d of %d files accepted", accepted, len(files))
	}
}

func list(t *testing.T) []string {
	var files []string
	_ = filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && regexp.MustCompile(`\.ya?ml$`).MatchString(path) {
			abs, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			files = append(files, abs)
		}
		return nil
	})
	if len(files) == 0 {
		kit.Skip(t, "the corpus of Compose files is not at %s", folder)
	}
	slices.Sort(files)
	return files
}

func read(file string) ([]byte, error) {
	a, err := compose.Load(context.Background(), compose.Options{Files: []string{file}, Environment: []string{"HOME=/root", "PWD=/"}})
	if err != nil {
		return nil, err
	}
	return compose.Write(a.Project, "yaml")
}

func examine(file, plugin string) row {
	r := row{file: file}
	ours, err := read(file)
	if err != nil {
		r.ours = err.Error()
	}
	theirs, why := run(plugin, "-f", file, "config")
	r.v5 = why
	r.same = err == nil && why == "" && bytes.Equal(ours, theirs)
	if err == nil && why == "" && !r.same {
		r.difference = firstDifference(string(ours), string(theirs))
	}
	if r.ours != "" || r.v5 != "" {
		_, r.v1 = run("docker-compose", "-f", file, "config")
	}
	r.explained = r.ours == "" || kind(r.ours) != "" && (kind(r.ours) == kind(r.v5) || kind(r.ours) == kind(r.v1))
	return r
}

func run(program string, args ...string) (out []byte, why string) {
	cmd := exec.Command(program, args...)
	cmd.Env = []string{"HOME=/root", "PWD=/", "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err == nil {
		return out, ""
	}
	var lines []string
	for _, l := range strings.Split(errs.String(), "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.Contains(l, "level=warning") && !strings.Contains(l, "WARNING") {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 {
		return nil, err.Error()
	}
	return nil, strings.Join(lines, " ")
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d: ours %q, theirs %q", i+1, x[i], y[i])
		}
	}
	return "one is longer"
}

// kinds are the reasons for which a file is refused, by what the three
// programs say.
var kinds = []struct {
	name string
	says *regexp.Regexp
}{
	{"no Compose file at all", regexp.MustCompile(`unknown key .* at the top|services? '.*' must be a mapping not|validating [^ ]*:  additional properties`)},
	{"an env file is missing", regexp.MustCompile(`(?i)env file .* not found|couldn't find env file|env_?file.*no such file`)},
	{"a required variable is missing", regexp.MustCompile(`(?i)required variable|is missing a value|mandatory|Missing mandatory value`)},
	{"a variable is malformed", regexp.MustCompile(`(?i)invalid interpolation`)},
	{"not YAML", regexp.MustCompile(`(?i)yaml: |failed to parse|mapping values are not allowed|already defined|did not find expected|could not find expected|while (parsing|scanning)`)},
	{"an unknown key", regexp.MustCompile(`(?i)unknown key|additional propert|Unsupported config option|needs the current format`)},
	{"something used is not declared", regexp.MustCompile(`(?i)undefined|which is no service|no such service|does not exist`)},
	{"a cycle", regexp.MustCompile(`(?i)cycle|circular|extends itself`)},
	{"a file is missing", regexp.MustCompile(`(?i)no such file`)},
	{"no services", regexp.MustCompile(`(?i)is empty|empty compose file|no services|neither an image nor a build|neither image nor build|has neither|Top level object|is a mapping of names|at the top|no service selected`)},
	{"a value of a wrong type", regexp.MustCompile(`(?i)must be a|must be |invalid type|contains an invalid|is invalid|invalid|expected type|should be|no port specified|not a valid|project name must not be empty`)},
	{"doubled", regexp.MustCompile(`(?i)already mounted|duplicate|conflict|non-unique|not unique`)},
}

func kind(text string) string {
	if text == "" {
		return ""
	}
	for _, k := range kinds {
		if k.says.MatchString(text) {
			return k.name
		}
	}
	return ""
}

func report(t *testing.T, rows []row) {
	accepted, same, v5, old, unexplained := 0, 0, 0, 0, 0
	short := func(s string) string {
		s = strings.ReplaceAll(s, filepath.Dir(rows[0].file), "")
		return s[:min(len(s), 220)]
	}
	base, _ := filepath.Abs(folder)
	for _, r := range rows {
		name := strings.TrimPrefix(r.file, base+"/")
		if r.v5 == "" {
			v5++
		}
		switch {
		case r.ours == "" && r.same:
			accepted, same = accepted+1, same+1
		case r.ours == "" && r.v5 == "":
			accepted++
			t.Logf("DIFFERS  %s\n    %s", name, r.difference)
		case r.ours == "":
			accepted++
			old += btoi(r.v1 == "")
			t.Logf("ONLY US  %s\n    5.6.0: %s\n    1.29.2: %s", name, short(r.v5), short(or(r.v1, "accepts")))
		case r.explained:
			t.Logf("refused  %s\n    %s: %s\n    5.6.0: %s\n    1.29.2: %s", name, kind(r.ours), short(r.ours), short(or(r.v5, "accepts")), short(or(r.v1, "accepts")))
		default:
			unexplained++
			t.Errorf("UNEXPLAINED %s\n    %s: %s\n    5.6.0: %s\n    1.29.2: %s", name, kind(r.ours), short(r.ours), short(or(r.v5, "accepts")), short(or(r.v1, "accepts")))
		}
	}
	t.Logf("%d files: %d accepted (%d of them to the byte as docker compose 5.6.0, which accepts %d; %d more that only docker-compose 1.29.2 and we accept), %d refused for a shared reason, %d unexplained",
		len(rows), accepted, same, v5, old, len(rows)-accepted-unexplained, unexplained)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}
