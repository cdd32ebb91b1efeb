package prose

import "testing"

func TestClip(t *testing.T) {
	for _, c := range []struct {
		line    string
		columns int
		want    string
	}{{"", 3, ""}, {"años", 4, "años"}, {"años", 3, "añ…"}, {"años", 1, "…"}, {"años", 0, ""}, {"años", -1, ""}, {"NOMBRE   DESCRIPCIÓN", 20, "NOMBRE   DESCRIPCIÓN"}, {"NOMBRE   DESCRIPCIÓN", 19, "NOMBRE   DESCRIPCI…"}} {
		if got := Clip(c.line, c.columns); got != c.want {
			t.Errorf("%q in %d: %q, should be %q", c.line, c.columns, got, c.want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"web", "worker", "postgres"}
	for wrong, want := range map[string]string{"wbe": "web", "Web": "web", "postgress": "postgres", "redis": "", "": ""} {
		if got := Nearest(wrong, known); got != want {
			t.Errorf("%q: %q, should be %q", wrong, got, want)
		}
	}
}
