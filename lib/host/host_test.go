package host

import "testing"

func TestReleasesAreComparedByNumber(t *testing.T) {
	for _, c := range []struct {
		release string
		want    bool
	}{
		{"6.15.0", true}, {"6.18.5-cloud-amd64", true}, {"7.0", true},
		{"6.1.0-18-amd64", false}, {"5.20.1", false}, {"", false}, {"unknown", false},
	} {
		if got := AtLeast(c.release, 6, 15); got != c.want {
			t.Errorf("AtLeast(%q, 6, 15) = %v, want %v", c.release, got, c.want)
		}
	}
}

func TestLookFindsThisHost(t *testing.T) {
	f := Look()
	if f.Kernel == "" || f.CPUs < 1 || f.MemoryBytes < 1<<20 || f.CgroupMode == "" {
		t.Errorf("facts are missing: %+v", f)
	}
}
