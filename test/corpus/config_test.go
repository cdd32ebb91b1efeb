package corpus

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/test/kit"
)

// whole is a project that uses most of the specification.
var whole = map[string]string{
	".env":    "TAG=1.27\nEMPTY=\nMONEY=$$5\n",
	"one.env": "FROM_FILE=yes\nWITH=${TAG}\n",
	"raw.env": "RAW=$TAG '#'\n",
	"l.label": "from.file=${TAG}\n",
	"base.yaml": `services:
  base:
    image: base:${TAG}
    volumes: ["./rel:/rel"]
    environment: {A: base, B: base}
    labels: [x=1]
`,
	"sub/compose.yaml": `services:
  included:
    image: inc
    build: {context: ., dockerfile_inline: "FROM scratch"}
    volumes: ["./here:/here"]
volumes:
  incvol: {}
`,
	"compose.yaml": `name: whole
include: [sub/compose.yaml]
x-common: &common
  restart: unless-stopped
  logging: {driver: json-file, options: {max-size: 10m}}
services:
  web:
    <<: *common
    extends: {file: base.yaml, service: base}
    command: sh -c "echo $$HOME ${NOTHING:-default} ${TAG:+set}"
    environment:
      B: web
      MONEY:
      UNSET:
    env_file:
    - one.env
    - {path: missing.env, required: false}
    - {path: raw.env, format: raw}
    label_file: l.label
    ports:
    - "8080-8081:80-81"
    - "127.0.0.1:53:53/udp"
    - {target: 443, published: "8443", mode: host, name: tls}
    depends_on:
      db: {condition: service_healthy, restart: true}
      included: {condition: service_started, required: false}
    networks:
      front: {aliases: [w], priority: 10, ipv4_address: 10.9.0.5}
      back:
    volumes:
    - data:/data:ro
    - /anon
    - {type: tmpfs, target: /t, tmpfs: {size: 10m}}
    - {type: volume, source: data, target: /sub, volume: {nocopy: true, subpath: x}}
    configs:
    - conf
    - {source: inline, target: /etc/i, mode: 0440, uid: "1"}
    secrets: [key]
    deploy:
      replicas: 2
      resources: {limits: {cpus: "0.5", memory: 64M, pids: 10}, reservations: {devices: [{capabilities: [gpu], count: 1}]}}
      update_config: {parallelism: 1, order: start-first, monitor: 5s}
      placement: {constraints: ["node.role==manager"]}
    ulimits: {nofile: {soft: 10, hard: 20}, nproc: 5}
    sysctls: {net.core.somaxconn: 1024}
    extra_hosts: ["a:1.2.3.4", "host.docker.internal:host-gateway"]
    healthcheck: {test: curl -f x, interval: 1m30s, retries: 3, start_interval: 1s}
    develop: {watch: [{path: ./src, action: sync, target: /src, ignore: [node_modules/]}]}
    post_start: [{command: ["echo", "hi"], user: root}]
    gpus: all
    dns: 1.1.1.1
    tmpfs: /run
    stop_grace_period: 20s
    annotations: {a: b}
    blkio_config: {weight: 300, device_read_bps: [{path: /dev/sda, rate: 1mb}]}
    mem_swappiness: 10
    models: {llm: {endpoint_var: LLM, model_var: NAME}}
    pull_policy: daily
  db:
    image: postgres@sha256:9c5dd0b3d7b1ba7f4c2b1a5f6f1ce4d5aa1f7f6a0d3c1f2c4e5a6b7c8d9e0f1a
    healthcheck: {test: [CMD, pg_isready]}
    networks: [back]
    user: "1000:1000"
    pre_start: [{image: busybox, command: "true"}]
    scale: 1
  tool:
    image: tool
    profiles: [tools, dev]
    network_mode: service:web
    volumes_from: ["db:ro"]
  plug:
    provider: {type: thing, options: {a: b, list: [1, 2]}}
networks:
  front: {ipam: {config: [{subnet: 10.9.0.0/16}]}, driver_opts: {com.docker.network.bridge.name: br9}}
  back: {internal: true, labels: {l: m}}
volumes:
  data: {driver: local, driver_opts: {type: none, o: bind, device: ./d}}
  unused: {}
configs:
  conf: {file: ./conf.txt}
  inline: {content: "tag=${TAG}"}
secrets:
  key: {environment: TAG}
models:
  llm: {model: ai/x, context_size: 10, runtime_flags: ["--x"]}
`,
	"override.yaml": `services:
  web:
    ports: !override ["9090:90"]
    environment: !reset null
    labels: {y: "2"}
    command: ["other", "$$x"]
  db:
    image: mysql
`,
}

func folderOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestConfigIsDockerComposes runs the same command line of `config` with the
// real program and with ours: what they print is the same to the byte, but for
// the order where the real one has none.
func TestConfigIsDockerComposes(t *testing.T) {
	plugin := kit.Tool(t, "docker-compose")
	berth, err := filepath.Abs(filepath.Join(os.Getenv("BERTH_TEST_BIN"), "berth"))
	if err != nil {
		t.Fatal(err)
	}
	dir := folderOf(t, whole)
	for line, sorted := range map[string]bool{
		"config": false, "config --format json": false, "config web": false, "config db --format json": false,
		"-f compose.yaml -f override.yaml config": false, "--profile tools config": false, "--profile * config --format json": false,
		"-p other config": false, "--all-resources config": false, "--project-directory . -f sub/compose.yaml config": false,
		"config --no-interpolate": false, "config --no-interpolate --format json": false,
		"config --no-normalize": false, "config --no-path-resolution": false, "config --no-consistency": false, "config --no-env-resolution": false,
		"config --services": true, "config --volumes": true, "config --networks": true, "config --models": true, "config --images": true,
		"config --profiles": true, "--profile tools config --profiles": true, "config --environment": true,
		"config --variables": true, "config --variables --format json": false, "config --variables --format yaml": false,
		"config --hash *": true, "--profile * config --hash web,tool": true, "-f compose.yaml -f override.yaml config --hash *": true,
		"--compatibility config": false, "--compatibility config --images": true, "config -q": false,
		"--env-file one.env config db": false, "-f sub/compose.yaml config": false,
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			theirs := output(t, dir, sorted, plugin, strings.Fields(line)...)
			ours := output(t, dir, sorted, berth, append([]string{"compose"}, strings.Fields(line)...)...)
			if diff := cmp.Diff(theirs, ours); diff != "" {
				t.Errorf("docker compose (-), berth compose (+):\n%s", diff)
			}
		})
	}
}

func output(t *testing.T, dir string, sorted bool, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "LANG=C"}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, errs.String())
	}
	if !sorted {
		return string(out)
	}
	lines := strings.Split(string(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
