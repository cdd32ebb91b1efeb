package compose

import "regexp"

// What reading a file says is in English, much of it a library's. These are the
// common sentences in Spanish; what stands around them (file, line) stays.
var spanish = [][2]string{
	{`no Compose file here or in a folder above; name one with -f, or make one of:`, `no hay ningún archivo de Compose aquí ni en las carpetas superiores; indique uno con -f, o cree uno de estos:`},
	{`no such service: ([^\s;:]+)`, `no existe el servicio $1`},
	{`; did you mean ("[^"]*")\?`, `; ¿quería decir $1?`},
	{`unknown key ("[^"]*") in ([^\s;]+)`, `clave desconocida $1 en $2`},
	{`unknown key ("[^"]*") at the top`, `clave desconocida $1 en la raíz`},
	{`service ("[^"]*") depends on undefined service ("[^"]*")`, `el servicio $1 depende del servicio $2, que no existe`},
	{`service ("[^"]*") refers to undefined network ([^\s:]+)`, `el servicio $1 usa la red $2, que no está declarada`},
	{`service ("[^"]*") refers to undefined volume ([^\s:]+)`, `el servicio $1 usa el volumen $2, que no está declarado`},
	{`service ("[^"]*") refers to undefined secret ([^\s:]+)`, `el servicio $1 usa el secreto $2, que no está declarado`},
	{`service ("[^"]*") refers to undefined config ([^\s:]+)`, `el servicio $1 usa la configuración $2, que no está declarada`},
	{`service ("[^"]*") has neither an image nor a build context specified`, `el servicio $1 no tiene ni imagen (image) ni cómo construirla (build)`},
	{"service (\\S+) declares mutually exclusive (`[^`]*`) and (`[^`]*`)", `el servicio $1 declara $2 y $3, que se excluyen`},
	{`dependency cycle detected:`, `hay un ciclo de dependencias:`},
	{`include cycle detected:`, `hay un ciclo de include:`},
	{`Circular reference:`, `Referencia circular:`},
	{`cannot extend service ("[^"]*") in (\S+): service ("[^"]*") not found`, `no se puede extender el servicio $1 en $2: no existe el servicio $3`},
	{`error while interpolating ([^\s:]+):`, `al sustituir variables en $1:`},
	{`required variable (\S+) is missing a value`, `falta el valor de la variable obligatoria $1`},
	{`invalid interpolation format for (\S+)\.\nYou may need to escape any \$ with another \$\.`, "sustitución de variables mal escrita en $1.\nUn $$ que no empieza una variable se escribe $$$$."},
	{`the variable (\S+) is not set; it stands for nothing`, `la variable $1 no tiene valor; se sustituye por nada`},
	{`env file (\S+) not found`, `no existe el archivo de variables $1`},
	{`invalid project name ("[^"]*"): must consist only of lowercase alphanumeric characters, hyphens, and underscores as well as start with a letter or number`,
		`$1 no puede ser el nombre de un proyecto: solo minúsculas, cifras, guiones y guiones bajos, y al principio una letra o una cifra`},
	{`no such file or directory`, `no existe el archivo o la carpeta`},
	{`: invalid compose project`, `: el proyecto no es válido`},
}

// words gives a text that came in English in the language of the screen.
func words(text string) string {
	if say("en", "es") == "en" {
		return text
	}
	return inSpanish(text)
}

func inSpanish(text string) string {
	for _, s := range spanish {
		text = regexp.MustCompile(s[0]).ReplaceAllString(text, s[1])
	}
	return text
}

// translated is an error in the language of the screen.
type translated struct {
	error
	text string
}

func (t translated) Error() string { return t.text }
func (t translated) Unwrap() error { return t.error }

func spoken(err error) error {
	if err == nil {
		return nil
	}
	if text := words(err.Error()); text != err.Error() {
		return translated{err, text}
	}
	return err
}
