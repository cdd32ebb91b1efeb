package crash

import "testing"

func TestAPlaceIsANameAndACount(t *testing.T) {
	for text, want := range map[string]place{
		"": {}, "3": {"", 3}, "step:2": {"step", 2}, "step": {}, "step:0": {}, "-1": {}, "step:x": {},
	} {
		if got := parse(text); got != want {
			t.Errorf("%q is %+v, want %+v", text, got, want)
		}
	}
}
