// Package client drives an engine with other real clients than docker's:
// Debian's python3-docker and docker-compose 1.29.2.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

const limit = 30 * time.Second

func start(t *testing.T, name string) *kit.Engine {
	t.Helper()
	ctx := context.Background()
	e, err := kit.Start(ctx, name, kit.Peer())
	if errors.Is(err, kit.ErrMissing) {
		kit.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := e.LoadImages(ctx); err != nil {
		t.Fatal(err)
	}
	return e
}

const pythonScript = `
import docker
c = docker.from_env()
assert c.ping()
events = c.events(decode=True)
assert c.containers.run('busybox:test', 'echo hello', remove=True) == b'hello\n'
x = c.containers.run('busybox:test', ['sh', '-c', 'for i in 1 2 3; do echo line $i; done; sleep 1000'], detach=True, name='py', environment={'A': 'b'}, labels={'k': 'v'})
lines = []
for l in x.logs(stream=True, follow=True):
    lines.append(l)
    if len(lines) == 3:
        break
assert lines == [b'line 1\n', b'line 2\n', b'line 3\n'], lines
code, out = x.exec_run('sh -c "echo out; echo err >&2; exit 3"', demux=True)
assert code == 3 and out == (b'out\n', b'err\n'), (code, out)
assert x.exec_run(['sh', '-c', 'echo $A'], tty=True).output == b'b\r\n'
x.reload()
assert x.status == 'running' and x.attrs['NetworkSettings']['IPAddress']
assert [y.name for y in c.containers.list(filters={'label': 'k=v'})] == ['py']
assert x.stats(stream=False)['pids_stats']['current'] >= 1
try:
    c.containers.get('nonsuch')
    raise AssertionError('found what is not there')
except docker.errors.NotFound:
    pass
x.stop(timeout=1)
assert x.wait()['StatusCode'] == 137
x.remove()
seen = []
for e in events:
    if e['Type'] == 'container':
        seen.append((e['Action'], e['Actor']['Attributes']['name']))
    if e['Action'] == 'destroy' and seen[-1][1] == 'py':
        break
own = [a for a, n in seen if n == 'py' and not a.startswith('exec_')]
assert own[0] == 'create' and 'start' in own and 'die' in own and own[-1] == 'destroy', own
print('all is well')
`

func TestPythonRunsStreamsAndExecs(t *testing.T) {
	kit.Need(t, "/usr/bin/python3")
	if err := exec.Command("/usr/bin/python3", "-c", "import docker").Run(); err != nil {
		kit.Skip(t, "python3-docker is not installed")
	}
	e := start(t, "python")
	cmd := exec.Command("/usr/bin/python3", "-c", pythonScript)
	cmd.Env = e.Env()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all is well") {
		t.Fatalf("%v\n%s\n%s", err, out, e.Log())
	}
}

const composeFile = `
version: "2.4"
services:
  web:
    image: busybox:test
    command: sh -c 'mkdir -p /www; echo counted >/www/index.html; httpd -f -p 80 -h /www'
    ports: ["127.0.0.1::80"]
    networks: [front, back]
    depends_on:
      redis: {condition: service_healthy}
  redis:
    image: redis:test
    command: redis-server --dir /data --save "" --appendonly yes --protected-mode no
    volumes: ["data:/data"]
    networks: [back]
    healthcheck: {test: ["CMD", "redis-cli", "ping"], interval: 300ms, timeout: 5s, retries: 50}
  worker:
    image: redis:test
    command: sh -c 'redis-cli -h redis incr count; exec sleep 1000'
    networks: [back]
    depends_on:
      redis: {condition: service_healthy}
volumes: {data: {}}
networks: {front: {}, back: {}}
`

func TestComposeBringsUpScalesShowsAndTakesDown(t *testing.T) {
	kit.Need(t, "/usr/bin/docker-compose", "redis-server", "redis-cli")
	e := start(t, "compose")
	ctx := context.Background()
	files, err := kit.BusyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	redis, err := kit.ProgramFiles("redis-server", "redis-cli")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.API.Load(ctx, "redis:test", kit.Config{Env: []string{kit.SearchPath}}, append(files, redis...)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "shop")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(composeFile), 0o644); err != nil {
		t.Fatal(err)
	}
	compose := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("/usr/bin/docker-compose", append([]string{"--no-ansi"}, args...)...)
		cmd.Dir, cmd.Env = dir, e.Env()
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("docker-compose %v: %v\n%s%s\n%s", args, err, out.Bytes(), errs.Bytes(), e.Log())
		}
		return out.String()
	}
	compose("up", "-d")
	if ps := compose("ps"); !strings.Contains(ps, "shop_redis_1") || strings.Count(ps, "Up") != 3 {
		t.Fatal(ps)
	}
	address := strings.TrimSpace(compose("port", "web", "80"))
	if err := kit.Until(limit, func() error {
		r, err := http.Get("http://" + address)
		if err == nil {
			err = r.Body.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	compose("up", "-d", "--scale", "worker=3")
	if err := kit.Until(limit, func() error {
		if n := strings.TrimSpace(compose("exec", "-T", "redis", "redis-cli", "get", "count")); n != "3" {
			return fmt.Errorf("the workers have counted to %s", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if logs := compose("logs", "worker"); !strings.Contains(logs, "worker_3") {
		t.Fatal(logs)
	}
	compose("restart", "-t", "1", "redis")
	// A changed file makes new containers; docker-compose asks the image for its volumes then.
	changed := strings.Replace(composeFile, "echo counted >", "echo changed >", 1)
	if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	compose("up", "-d", "-t", "1", "--scale", "worker=3")
	address = strings.TrimSpace(compose("port", "web", "80"))
	if err := kit.Until(limit, func() error {
		r, err := http.Get("http://" + address)
		if err != nil {
			return err
		}
		page, err := io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return err
		}
		if strings.TrimSpace(string(page)) != "changed" {
			return fmt.Errorf("the page says %q", page)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if top := compose("top", "redis"); !strings.Contains(top, "redis-server") {
		t.Fatal(top)
	}
	compose("pause", "web")
	compose("unpause", "web")
	compose("down", "-v", "-t", "1")
	left, err := e.Docker(ctx, "ps", "-aq")
	if err != nil || left != "" {
		t.Fatalf("%v: left %s", err, left)
	}
	networks, err := e.Docker(ctx, "network", "ls", "-q", "--filter", "type=custom")
	if err != nil || networks != "" {
		t.Fatalf("%v: left %s", err, networks)
	}
}
