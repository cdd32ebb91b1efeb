package compose

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFirstFormatIsTranslated(t *testing.T) {
	dir := write(t, map[string]string{
		"fig.yml": `web:
  build: ./web
  dockerfile: Other
  command: run $$HOME ${WHO}
  links: [db, "db:database"]
  volumes: [".:/code", "data:/data", "/anon"]
  volumes_from: [db, outside:ro]
  log_driver: syslog
  log_opt: {tag: x}
  ports: ["80:8000"]
side:
  image: side
  net: "container:db"
  extends: {file: common/base.yml, service: base}
db:
  image: postgres
`,
		"common/base.yml": "base:\n  image: old\n  volumes: ['./x:/x']\n  environment: {A: b}\n",
	})
	a := mustLoad(t, nil, Options{WorkingDir: dir, Environment: []string{"WHO=me"}, ProjectName: "p"})
	text, err := a.Project.MarshalYAML()
	if err != nil {
		t.Fatal(err)
	}
	want := `name: p
services:
  db:
    image: postgres
    network_mode: bridge
  side:
    environment:
      A: b
    image: side
    network_mode: service:db
    volumes:
      - type: bind
        source: ` + dir + `/common/x
        target: /x
        bind: {}
    depends_on:
      db:
        condition: service_started
        restart: true
        required: true
  web:
    links:
      - db
      - db:database
    command:
      - run
      - $HOME
      - me
    logging:
      driver: syslog
      options:
        tag: x
    network_mode: bridge
    volumes:
      - type: bind
        source: ` + dir + `
        target: /code
        bind: {}
      - type: volume
        source: data
        target: /data
        volume: {}
      - type: volume
        target: /anon
        volume: {}
    volumes_from:
      - db
      - container:outside:ro
    build:
      context: ` + dir + `/web
      dockerfile: Other
    depends_on:
      db:
        condition: service_started
        restart: true
        required: true
    ports:
      - mode: ingress
        target: 8000
        published: "80"
        protocol: tcp
volumes:
  data:
    name: data
    labels:
      berth.scope: machine
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Error(diff)
	}
}
