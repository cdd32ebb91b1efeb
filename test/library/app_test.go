package library

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
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/test/kit"
)

// Limits of one wait in a script, and of one script.
const (
	waitLimit   = 2 * time.Minute
	scriptLimit = 15 * time.Minute
)

// runApplications runs the scripts of app/: each is an application as a public
// project writes it, built and run from images of the library.
func runApplications(t *testing.T, e *kit.Engine) {
	kit.Need(t, "docker", "curl")
	files, err := filepath.Glob("app/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no applications", err)
	}
	gateway, err := e.Docker(context.Background(), "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
	if err != nil {
		t.Fatal(err)
	}
	window := gateway + ":" + lead(t)
	ran := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := images(text)
		if !*all && slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(asked(), n) }) {
			continue // it stands on images that this run does not make
		}
		ran++
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			berth(t, e, append([]string{"library", "build", "--offline", "--format", "json"}, names...)...)
			testscript.RunT(kit.One{T: t}, testscript.Params{
				Files: []string{file}, Deadline: time.Now().Add(kit.Stretch(scriptLimit)), RequireExplicitExec: true,
				Setup: func(env *testscript.Env) error { return setup(env, e, window) },
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"images": func(*testscript.TestScript, bool, []string) {}, "compose": compose, "until": until,
				},
			})
		})
	}
	if ran == 0 && *chosen == "" {
		t.Error("no application ran")
	}
}

var imagesLine = regexp.MustCompile(`(?m)^images (.+)$`)

// images are those of the library that a script names: images NAME…
func images(script []byte) []string {
	if m := imagesLine.FindSubmatch(script); m != nil {
		return strings.Fields(string(m[1]))
	}
	return nil
}

// setup is a person's environment behind a proxy: the docker client's
// configuration names it for builds, the variables where the registries are.
func setup(env *testscript.Env, e *kit.Engine, window string) error {
	home := filepath.Join(env.WorkDir, ".home")
	host, _, _ := strings.Cut(window, ":")
	config := fmt.Sprintf(`{"proxies": {"default": {"httpProxy": "http://%s", "noProxy": %q}}}`, window, host)
	if err := os.MkdirAll(filepath.Join(home, ".docker"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), []byte(config), 0o644); err != nil {
		return err
	}
	for k, v := range map[string]string{
		"HOME": home, "LANG": "C", "DOCKER_HOST": "unix://" + e.Socket, "PATH": filepath.Dir(os.Getenv(binVar)) + ":" + os.Getenv("PATH"),
		"GOPROXY": "http://" + window + "/go", "GONOSUMDB": "*", "NPM_CONFIG_REGISTRY": "http://" + window + "/",
	} {
		env.Setenv(k, v)
	}
	env.Defer(func() {
		cmd := exec.Command(os.Getenv(binVar), "compose", "down", "--volumes", "--remove-orphans", "--timeout", "1")
		cmd.Dir, cmd.Env = env.WorkDir, env.Vars
		_ = cmd.Run()
	})
	return nil
}

// compose runs berth compose: compose ARG…
func compose(ts *testscript.TestScript, neg bool, args []string) {
	if err := ts.Exec("berth", append([]string{"compose"}, args...)...); (err == nil) == neg {
		ts.Fatalf("compose %v: %v", args, err)
	}
}

// until runs a program until its output matches: until REGEX PROGRAM ARG…
func until(ts *testscript.TestScript, neg bool, args []string) {
	match, err := regexp.Compile("(?ms)" + args[0])
	ts.Check(err)
	var last bytes.Buffer
	err = kit.Until(waitLimit, func() error {
		last.Reset()
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), &last, &last
		_ = cmd.Run()
		if match.Match(last.Bytes()) == neg {
			return fmt.Errorf("output against %s", args[0])
		}
		return nil
	})
	if err != nil {
		_ = ts.Exec("berth", "compose", "logs", "--tail", "20")
		ts.Fatalf("until %v: %v\n%s", args, err, last.String())
	}
	fmt.Fprint(ts.Stdout(), last.String())
}
