package compose

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/format/compose"
)

// The errors are real ones: a library that words them anew is seen here.
func TestWhatReadingSaysIsSaidInSpanish(t *testing.T) {
	used := map[string]bool{}
	check := func(name, english, want string) {
		t.Helper()
		if diff := cmp.Diff(want, inSpanish(english)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for _, s := range spanish {
			if regexp.MustCompile(s[0]).MatchString(english) {
				used[s[0]] = true
			}
		}
	}
	for name, c := range map[string]struct {
		text string
		o    compose.Options
		want string
	}{
		"a service that is asked for": {"services:\n  web: {image: x}\n", compose.Options{Services: []string{"wbe"}}, `no existe el servicio wbe; ¿quería decir "web"?`},
		"a key":                       {"services:\n  a: {image: x, imgae: y}\n", compose.Options{}, `c.yaml:2: clave desconocida "imgae" en services.a; ¿quería decir "image"?`},
		"a key at the top":            {"zzzzzzzz: {}\n", compose.Options{}, `c.yaml:1: clave desconocida "zzzzzzzz" en la raíz`},
		"depends_on":                  {"services:\n  a: {image: x, depends_on: [b]}\n", compose.Options{}, `c.yaml:2: el servicio "a" depende del servicio "b", que no existe: el proyecto no es válido`},
		"a network":                   {"services:\n  a: {image: x, networks: [n]}\n", compose.Options{}, `c.yaml:2: el servicio "a" usa la red n, que no está declarada: el proyecto no es válido`},
		"a volume":                    {"services:\n  a: {image: x, volumes: ['vol:/x']}\n", compose.Options{}, `c.yaml:2: el servicio "a" usa el volumen vol, que no está declarado: el proyecto no es válido`},
		"a secret":                    {"services:\n  a: {image: x, secrets: [n]}\n", compose.Options{}, `c.yaml:2: el servicio "a" usa el secreto n, que no está declarado: el proyecto no es válido`},
		"a config":                    {"services:\n  a: {image: x, configs: [n]}\n", compose.Options{}, `c.yaml:2: el servicio "a" usa la configuración n, que no está declarada: el proyecto no es válido`},
		"no image":                    {"services:\n  a: {}\n", compose.Options{}, `c.yaml:2: el servicio "a" no tiene ni imagen (image) ni cómo construirla (build): el proyecto no es válido`},
		"what excludes another": {"services:\n  a: {image: x, network_mode: host, networks: [n]}\nnetworks: {n: {}}\n", compose.Options{},
			"c.yaml: el servicio a declara `network_mode` y `networks`, que se excluyen: el proyecto no es válido"},
		"a cycle":                 {"services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n", compose.Options{}, `c.yaml: hay un ciclo de dependencias: a -> b -> a`},
		"a cycle of extends":      {"services:\n  a: {extends: {service: a}}\n", compose.Options{}, "c.yaml: Referencia circular:\n  a in c.yaml\n  extends a in c.yaml"},
		"a cycle of include":      {"include: [c.yaml]\nservices:\n  a: {image: x}\n", compose.Options{}, "c.yaml: hay un ciclo de include:\nc.yaml\n include c.yaml"},
		"extends":                 {"services:\n  a: {extends: {service: b}}\n", compose.Options{}, `c.yaml:2: no se puede extender el servicio "a" en c.yaml: no existe el servicio "b"`},
		"a variable that must be": {"services:\n  a: {image: '${Q:?diga cuál}'}\n", compose.Options{}, `c.yaml:2: al sustituir variables en services.a.image: falta el valor de la variable obligatoria Q: diga cuál`},
		"an open bracket":         {"services:\n  a: {image: '${'}\n", compose.Options{}, "c.yaml:2: sustitución de variables mal escrita en services.a.image.\nUn $ que no empieza una variable se escribe $$.\n${"},
		"a file of variables":     {"services:\n  a: {image: x, env_file: none}\n", compose.Options{}, `c.yaml: no existe el archivo de variables none: stat none: no existe el archivo o la carpeta`},
		"the name of a project":   {"services:\n  a: {image: x}\n", compose.Options{ProjectName: "A"}, `c.yaml: "A" no puede ser el nombre de un proyecto: solo minúsculas, cifras, guiones y guiones bajos, y al principio una letra o una cifra`},
		"no file":                 {"", compose.Options{}, `no hay ningún archivo de Compose aquí ni en las carpetas superiores; indique uno con -f, o cree uno de estos: compose.yaml, compose.yml, docker-compose.yml, docker-compose.yaml, fig.yml, fig.yaml`},
	} {
		dir := t.TempDir()
		c.o.WorkingDir, c.o.Environment = dir, []string{"A=b"}
		if c.text != "" {
			c.o.Files = []string{"c.yaml"}
			if err := os.WriteFile(filepath.Join(dir, "c.yaml"), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := compose.Load(context.Background(), c.o)
		if err == nil {
			t.Errorf("%s: it was read", name)
			continue
		}
		check(name, strings.ReplaceAll(err.Error(), dir+"/", ""), c.want)
	}
	check("a variable", "the variable A is not set; it stands for nothing", "la variable A no tiene valor; se sustituye por nada")
	for _, s := range spanish {
		if !used[s[0]] {
			t.Errorf("nothing says %q", s[0])
		}
	}
}
