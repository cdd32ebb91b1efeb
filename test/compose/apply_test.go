package compose

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth/core/app"
)

const sleeper = `{image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, pull_policy: never}`

func TestUpMakesAllAndASecondUpNothing(t *testing.T) {
	w := engine(t)
	file := `services:
  db:
    image: busybox:test
    command: [sh, -c, "touch /ok; exec sleep 1000"]
    stop_signal: KILL
    healthcheck: {test: [CMD, test, -e, /ok], interval: 50ms, start_period: 5s, start_interval: 50ms}
    volumes: ["data:/data", "/anonymous"]
  web:
    image: busybox:test
    command: [sleep, "1000"]
    stop_signal: KILL
    depends_on: {db: {condition: service_healthy}}
    deploy: {replicas: 2}
    secrets: [word]
    configs: [{source: text, target: /etc/text}]
volumes: {data: {}}
secrets: {word: {environment: WORD}}
configs: {text: {content: "hello"}}
`
	w.mustUp(file, app.Policy{Wait: true})
	w.want("db-1 running", "web-1 running", "web-2 running")
	if steps := w.plan(file, app.Policy{}); len(steps) != 0 {
		t.Errorf("a second up would do %q", steps)
	}
	before := w.ids()
	if r := w.mustUp(file, app.Policy{}); r.Changed {
		t.Error("a second up changed something")
	}
	if out, err := w.e.Docker(context.Background(), "exec", before["web-2"], "cat", "/etc/text"); err != nil || out != "hello" {
		t.Errorf("config is %q, %v", out, err)
	}
	changed := strings.Replace(file, `replicas: 2`, `replicas: 1`, 1)
	w.mustUp(changed, app.Policy{})
	w.want("db-1 running", "web-1 running")
	if now := w.ids(); now["db-1"] != before["db-1"] || now["web-1"] != before["web-1"] {
		t.Error("a change of numbers made other containers")
	}
	if list, err := w.c.History(context.Background(), w.name, false); err != nil || len(list) != 2 || list[0].Number != 2 || !list[0].Current || list[0].Outcome != "applied" {
		t.Errorf("history is %+v, %v", list, err)
	}
	r, err := w.c.Rollback(context.Background(), w.name, app.RollbackRequest{}, nil)
	if err != nil || r.Revision != 3 {
		t.Fatalf("rollback: %+v %v", r, err)
	}
	w.want("db-1 running", "web-1 running", "web-2 running")
	if _, err := w.c.Down(context.Background(), w.name, app.DownRequest{Volumes: true}, nil); err != nil {
		t.Fatal(err)
	}
	d, err := w.c.Inspect(context.Background(), w.name)
	if err != nil || len(d.Observed.Containers)+len(d.Observed.Networks)+len(d.Observed.Volumes) != 0 {
		t.Errorf("after down there is %+v, %v", d.Observed, err)
	}
}

func TestAFailedServiceLeavesItsSiblingsAlone(t *testing.T) {
	w := engine(t)
	_, _, err := w.up(`services:
  good: `+sleeper+`
  bad: {image: "busybox:test", command: [/nothing/there]}
  after: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, depends_on: [bad]}
  sick:
    image: busybox:test
    command: [sleep, "1000"]
    stop_signal: KILL
    healthcheck: {test: [CMD-SHELL, "echo no disk; false"], interval: 20ms, retries: 2}
  patient: {image: "busybox:test", command: [sleep, "1000"], depends_on: {sick: {condition: service_healthy}}}
  once: {image: "busybox:test", command: [sh, -c, "exit 3"]}
  next: {image: "busybox:test", command: [sleep, "1000"], depends_on: {once: {condition: service_completed_successfully}}}
  last: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, depends_on: {once: {condition: service_completed_successfully, required: false}}}
`, app.Policy{})
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range []string{"service bad: start " + w.name + "-bad-1", "/nothing/there", "unhealthy", "no disk", `service "once" didn't complete successfully: exit 3`} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error does not tell of %q: %v", text, err)
		}
	}
	w.want("after-1 created", "bad-1 created", "good-1 running", "last-1 running", "next-1 created", "once-1 exited", "patient-1 created", "sick-1 running")
}

func TestOnlyWhatChangedIsRecreated(t *testing.T) {
	w := engine(t)
	file := func(env string) string {
		return fmt.Sprintf(`services:
  a: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, environment: {X: "%s"}, volumes: ["/kept"]}
  b: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, depends_on: {a: {condition: service_started, restart: true}}}
  c: {image: "busybox:test", command: [sleep, "1000"], stop_signal: KILL, network_mode: "service:a"}
  d: %s
`, env, sleeper)
	}
	w.mustUp(file("1"), app.Policy{})
	before := w.ids()
	started := func(id string) string {
		out, err := w.e.Docker(context.Background(), "inspect", "-f", "{{.State.StartedAt}} {{range .Mounts}}{{.Name}}{{end}}", id)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	b, d, a := started(before["b-1"]), started(before["d-1"]), strings.Fields(started(before["a-1"]))
	w.mustUp(file("2"), app.Policy{})
	now := w.ids()
	if now["a-1"] == before["a-1"] || now["c-1"] == before["c-1"] {
		t.Error("what changed was not recreated")
	}
	if now["b-1"] != before["b-1"] || started(now["b-1"]) == b {
		t.Error("what is to be restarted was not, or was recreated")
	}
	if now["d-1"] != before["d-1"] || started(now["d-1"]) != d {
		t.Error("what has nothing to do with it was touched")
	}
	if kept := strings.Fields(started(now["a-1"])); kept[1] != a[1] {
		t.Error("the anonymous volume was not kept")
	}
	w.want("a-1 running", "b-1 running", "c-1 running", "d-1 running")
	if steps := w.plan(file("2"), app.Policy{}); len(steps) != 0 {
		t.Errorf("still to do: %q", steps)
	}
	if _, err := w.c.Act(context.Background(), w.name, "stop", app.ActRequest{Services: []string{"b"}}, nil); err != nil {
		t.Fatal(err)
	}
	w.want("a-1 running", "b-1 exited", "c-1 running", "d-1 running")
	if steps := w.plan(file("2"), app.Policy{}); !slices.Equal(steps, []string{"start container " + w.name + "-b-1"}) {
		t.Errorf("after a stop: %q", steps)
	}
}

func TestAnOperationOutlivesItsClient(t *testing.T) {
	w := engine(t)
	ctx, cancel := context.WithCancel(context.Background())
	var operation string
	_, err := w.c.Apply(ctx, app.ApplyRequest{Document: w.document("services:\n  a: " + sleeper + "\n  b: " + sleeper + "\n")}, func(p app.Progress) error {
		operation = p.Operation
		cancel()
		return ctx.Err()
	})
	if err == nil {
		t.Fatal("the client did not leave")
	}
	if _, err := w.c.Follow(context.Background(), operation, 0, nil); err != nil {
		t.Fatal(err)
	}
	w.want("a-1 running", "b-1 running")
}

func TestBadDocumentsAreRefused(t *testing.T) {
	w := engine(t)
	for text, want := range map[string]string{
		"services:\n  a: {image: x, depends_on: [b]}\n  b: {image: y}\nnetworks: {n: {external: true}}\n": "",
		"services:\n  a: {image: \"busybox:test\", provider: {type: model}}\n":                            "provider",
		"services:\n  a: {image: \"busybox:test\", volumes: [{type: npipe, source: x, target: /x}]}\n":    "npipe",
		"services:\n  a: {image: \"busybox:test\", secrets: [s]}\nsecrets: {s: {external: true}}\n":       "external",
		"services:\n  a: {image: \"busybox:test\", use_api_socket: true}\n":                               "use_api_socket",
	} {
		if want == "" {
			continue
		}
		if _, _, err := w.up(text, app.Policy{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	d := w.document("services:\n  a: " + sleeper + "\n")
	d.Name = "../etc"
	if _, err := w.c.Apply(context.Background(), app.ApplyRequest{Document: d}, nil); err == nil {
		t.Error("a bad name was taken")
	}
}
