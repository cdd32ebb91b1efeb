package output

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
)

const crashVariable = "BERTH_TEST_PUMP"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashVariable); dir != "" {
		pumpUntilKilled(dir)
		return
	}
	os.Exit(m.Run())
}

func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	if err := raw.Control(func(old uintptr) { fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return os.NewFile(uintptr(fd), "pipe"), unix.SetNonblock(fd, true)
}

func crashOutput(dir string) (*Output, container.Container, error) {
	driver := filepath.Base(dir)
	o, err := New(Options{Dir: filepath.Join(dir, "logs"), Run: filepath.Join(dir, "run")})
	return o, testContainer(driver, "max-size", "700k", "max-file", "1000"), err
}

// pumpUntilKilled is a daemon that is killed: descriptors 3 and 4 are the
// process's output. It tells each thousandth record it has logged.
func pumpUntilKilled(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
	}
	o, c, err := crashOutput(dir)
	fail(err)
	for fd := 3; fd <= 4; fd++ {
		fail(unix.SetNonblock(fd, true))
	}
	s, err := o.Pump(context.Background(), c, container.Pipes{Stdout: os.NewFile(3, "stdout"), Stderr: os.NewFile(4, "stderr")})
	fail(err)
	fmt.Println("pumping")
	opt := all()
	opt.Follow, opt.Tail = true, 0
	n := 0
	fail(o.Logs(context.Background(), c, opt, func(container.LogRecord) error {
		if n++; n%1000 == 0 {
			fmt.Println("logged", n)
		}
		return nil
	}))
	<-s.Drained()
	fmt.Println("drained")
}

func TestNoLineIsLostOrDoubledWhenTheDaemonIsKilled(t *testing.T) {
	const kills, lines = 20, 400_000
	for _, driver := range []string{"local", "json-file"} {
		t.Run(driver, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), driver)
			outR, outW, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			errR, errW, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer outR.Close()
			defer errR.Close()
			wrote := make(chan error, 2)
			for _, w := range []*os.File{outW, errW} {
				go func() {
					b := bufio.NewWriterSize(w, 3000) // lines are torn
					for i := range lines {
						fmt.Fprintf(b, "%d\n", i)
					}
					err := b.Flush()
					if e := w.Close(); err == nil {
						err = e
					}
					wrote <- err
				}()
			}
			killed := 0
			for drained := false; !drained; {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), crashVariable+"="+dir)
				cmd.ExtraFiles = []*os.File{outR, errR}
				said, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				scan := bufio.NewScanner(said)
				for seen := 0; scan.Scan(); seen++ {
					if scan.Text() == "drained" {
						drained = true
					} else if strings.HasPrefix(scan.Text(), "failed") {
						t.Error(scan.Text())
						drained = true
					} else if killed < kills && seen >= killed%7*3 {
						killed++
						_ = cmd.Process.Kill()
						break
					}
				}
				_ = cmd.Wait() // it was killed
			}
			for range 2 {
				if err := <-wrote; err != nil {
					t.Fatal(err)
				}
			}
			o, c, err := crashOutput(dir)
			if err != nil {
				t.Fatal(err)
			}
			var next [2]int
			err = o.Logs(t.Context(), c, all(), func(r container.LogRecord) error {
				s := 0
				if r.Stderr {
					s = 1
				}
				if got, err := strconv.Atoi(strings.TrimSuffix(string(r.Line), "\n")); err != nil || got != next[s] {
					return fmt.Errorf("%q instead of %d on stream %d", r.Line, next[s], s)
				}
				next[s]++
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if next != [2]int{lines, lines} {
				t.Errorf("%v lines of %d", next, lines)
			}
			t.Logf("killed %d times", killed)
		})
	}
}
