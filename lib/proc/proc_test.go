package proc

import (
	"errors"
	"os"
	"os/exec"
	"testing"
)

func TestAProcessIsNotItsSuccessor(t *testing.T) {
	self := Of(os.Getpid())
	if self.Start == 0 {
		t.Fatal("no start time")
	}
	root, err := self.Root()
	if err != nil {
		t.Fatal(err)
	}
	_ = root.Close()
	for _, other := range []Process{{self.Pid, self.Start + 1}, {self.Pid, 0}} {
		if _, err := other.Root(); !errors.Is(err, ErrGone) {
			t.Errorf("%+v: %v", other, err)
		}
	}
}

func TestAProcessThatHasEnded(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := Of(cmd.Process.Pid)
	dir, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := p.Root(); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	if got := Of(p.Pid); got == p {
		t.Errorf("%+v is still there", got)
	}
}
