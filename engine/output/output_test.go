package output

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/container"
)

func testOutput(t *testing.T) *Output {
	t.Helper()
	o, err := New(Options{Dir: t.TempDir(), Run: filepath.Join(t.TempDir(), "run")})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func testContainer(driver string, options ...string) container.Container {
	c := container.Container{ID: container.ID(strings.Repeat("ab", 32)), Name: "c1", State: container.State{Pid: 42}}
	c.Spec.Log.Driver = driver
	c.Spec.Log.Options = map[string]string{}
	for i := 0; i+1 < len(options); i += 2 {
		c.Spec.Log.Options[options[i]] = options[i+1]
	}
	return c
}

// process stands for a container's process: it has the pipes' other ends.
type process struct {
	out, err *os.File
	stream   container.Stream
}

func start(t testing.TB, o *Output, c container.Container) process {
	t.Helper()
	r1, w1, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s, err := o.Pump(t.Context(), c, container.Pipes{Stdout: r1, Stderr: r2})
	if err != nil {
		t.Fatal(err)
	}
	return process{w1, w2, s}
}

func (p process) end(t testing.TB) {
	t.Helper()
	if err := p.out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.err.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.stream.Drained()
}

func write(t testing.TB, f *os.File, text string) {
	t.Helper()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func all() container.LogOptions { return container.LogOptions{Stdout: true, Stderr: true, Tail: -1} }

func records(t testing.TB, o *Output, c container.Container, opt container.LogOptions) (lines []string, times []time.Time) {
	t.Helper()
	err := o.Logs(t.Context(), c, opt, func(r container.LogRecord) error {
		lines, times = append(lines, string(r.Line)), append(times, r.Time)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines, times
}

func TestWhatAProcessWritesIsReadBackLineByLine(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, driver := range []string{"local", "json-file"} {
		for name, tt := range map[string]struct {
			write string
			want  []string
		}{
			"lines":                         {"one\ntwo\n", []string{"one\n", "two\n"}},
			"an end without a newline":      {"one\ntwo", []string{"one\n", "two"}},
			"empty lines":                   {"\n\n", []string{"\n", "\n"}},
			"nothing":                       {"", nil},
			"a line as long as a part":      {long[:maxLine-1] + "\n", []string{long[:maxLine-1] + "\n"}},
			"a line one longer than a part": {long + "\n", []string{long, "\n"}},
			"a line of three parts":         {long + long + "end\nnext\n", []string{long, long, "end\n", "next\n"}},
			"bytes that JSON escapes":       {"\t<a href=\"\\\">&\x01\u2028é😀\r\n", []string{"\t<a href=\"\\\">&\x01\u2028é😀\r\n"}},
		} {
			t.Run(driver+" keeps "+name, func(t *testing.T) {
				o, c := testOutput(t), testContainer(driver)
				p := start(t, o, c)
				write(t, p.out, tt.write)
				p.end(t)
				got, times := records(t, o, c, all())
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Error(d)
				}
				for i := 1; i < len(times); i++ {
					if times[i].Before(times[i-1]) {
						t.Errorf("record %d is older than the one before", i)
					}
				}
				if left := o.spools(c.ID); len(left) != 0 {
					t.Errorf("spools are left: %v", left)
				}
			})
		}
	}
}

func TestJSONFileHasDockersBytes(t *testing.T) {
	f := newJSONLines(map[string]string{"tag": "<x>", "a": "b"})
	nano := time.Date(2024, 5, 6, 7, 8, 9, 120000000, time.UTC).UnixNano()
	for name, tt := range map[string]struct {
		l    line
		want string
	}{
		"a line":         {line{[]byte("hi\n"), false, nano}, `{"log":"hi\n","stream":"stdout","attrs":{"a":"b","tag":"\u003cx\u003e"},"time":"2024-05-06T07:08:09.12Z"}`},
		"a whole second": {line{[]byte("hi"), true, nano - 120000000}, `{"log":"hi","stream":"stderr","attrs":{"a":"b","tag":"\u003cx\u003e"},"time":"2024-05-06T07:08:09Z"}`},
		"escapes":        {line{[]byte("\t\"\\<>&\x00\xff\u2029\r"), true, nano}, `{"log":"\u0009\"\\\u003c\u003e\u0026\u0000\ufffd\u2029\r","stream":"stderr","attrs":{"a":"b","tag":"\u003cx\u003e"},"time":"2024-05-06T07:08:09.12Z"}`},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tt.want+"\n", string(f.encode(nil, tt.l))); d != "" {
				t.Error(d)
			}
		})
	}
}

// fill writes n numbered lines to a log, stderr's odd.
func fill(t *testing.T, o *Output, c container.Container, n int) {
	t.Helper()
	p := start(t, o, c)
	var out, errs bytes.Buffer
	for i := range n {
		if i%2 == 0 {
			fmt.Fprintf(&out, "line %06d\n", i)
		} else {
			fmt.Fprintf(&errs, "line %06d\n", i)
		}
	}
	done := make(chan error)
	go func() { _, err := io.Copy(p.err, &errs); done <- err }()
	if _, err := io.Copy(p.out, &out); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.end(t)
}

func TestRecordsAreSelected(t *testing.T) {
	const n = 30_000 // more than is read rather than searched
	for name, c := range map[string]container.Container{
		"local":              testContainer("local"),
		"local, rotated":     testContainer("local", "max-size", "300k", "max-file", "100"),
		"json-file":          testContainer("json-file"),
		"json-file, rotated": testContainer("json-file", "max-size", "1m", "max-file", "100"),
		"json-file, packed":  testContainer("json-file", "max-size", "1m", "max-file", "100", "compress", "true"),
	} {
		t.Run(name, func(t *testing.T) {
			o := testOutput(t)
			fill(t, o, c, n)
			lines, times := records(t, o, c, all())
			if len(lines) != n {
				t.Fatalf("%d lines of %d", len(lines), n)
			}
			check := func(what string, opt container.LogOptions, want []string) {
				t.Helper()
				got, _ := records(t, o, c, opt)
				if len(want) == 0 {
					want = nil
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s: %.500s", what, d)
				}
			}
			var stdout []string
			for _, l := range lines {
				if strings.ContainsAny(l[len(l)-2:len(l)-1], "02468") {
					stdout = append(stdout, l)
				}
			}
			check("only stdout", container.LogOptions{Stdout: true, Tail: -1}, stdout)
			for _, k := range []int{0, 1, 7, 5000, n - 1, n, n + 1} {
				check(fmt.Sprint("tail ", k), container.LogOptions{Stdout: true, Stderr: true, Tail: k}, lines[max(0, n-k):])
			}
			check("tail of stdout", container.LogOptions{Stdout: true, Tail: 11}, stdout[len(stdout)-11:])
			for _, k := range []int{0, 1, 100, n / 3, n - 2} {
				check(fmt.Sprint("since record ", k), container.LogOptions{Stdout: true, Stderr: true, Tail: -1, Since: times[k]}, lines[k:])
				check(fmt.Sprint("until record ", k), container.LogOptions{Stdout: true, Stderr: true, Tail: -1, Until: times[k]}, lines[:k+1])
				check(fmt.Sprint("tail until record ", k), container.LogOptions{Stdout: true, Stderr: true, Tail: 3, Until: times[k]}, lines[max(0, k-2):k+1])
			}
			check("since and tail", container.LogOptions{Stdout: true, Stderr: true, Tail: 10, Since: times[n-4]}, lines[n-4:])
			if err := o.Forget(c); err != nil {
				t.Fatal(err)
			}
			if left := logFiles(o.logPath(c), true); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestALogKeepsToItsLimits(t *testing.T) {
	o, c := testOutput(t), testContainer("json-file", "max-size", "10k", "max-file", "3")
	fill(t, o, c, 1000)
	files := logFiles(o.logPath(c), false)
	if len(files) != 3 {
		t.Fatalf("%v", files)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 10_100 {
			t.Errorf("%s has %d bytes", f, info.Size())
		}
	}
}

func TestAFollowerSeesAllAcrossRotations(t *testing.T) {
	for _, driver := range []string{"local", "json-file"} {
		t.Run(driver, func(t *testing.T) {
			o, c := testOutput(t), testContainer(driver, "max-size", "20k", "max-file", "1000")
			p := start(t, o, c)
			got := make(chan string, 1<<20)
			done := make(chan error)
			go func() {
				opt := all()
				opt.Follow = true
				done <- o.Logs(t.Context(), c, opt, func(r container.LogRecord) error { got <- string(r.Line); return nil })
			}()
			const n = 20_000
			write(t, p.out, "0\n")
			<-got
			for i := 1; i < n; i++ {
				write(t, p.out, fmt.Sprintf("%d\n", i))
			}
			p.end(t)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			close(got)
			next := 1
			for l := range got {
				if l != fmt.Sprintf("%d\n", next) {
					t.Fatalf("%q instead of %d", l, next)
				}
				next++
			}
			if next != n {
				t.Errorf("%d of %d", next, n)
			}
		})
	}
}

func TestASubscriberHasAllBytesOfItsStream(t *testing.T) {
	for _, driver := range []string{"local", "none"} {
		t.Run(driver, func(t *testing.T) {
			o, c := testOutput(t), testContainer(driver)
			p := start(t, o, c)
			var out, errs bytes.Buffer
			done, _ := p.stream.Subscribe(&out, &errs)
			gone, cancel := p.stream.Subscribe(&out, nil)
			cancel()
			<-gone
			text := strings.Repeat("no newline ", 100_000)
			write(t, p.out, text)
			write(t, p.err, "e")
			p.end(t)
			<-done
			if out.String() != text || errs.String() != "e" {
				t.Errorf("%d and %d bytes", out.Len(), errs.Len())
			}
			late, _ := p.stream.Subscribe(&out, nil)
			<-late
		})
	}
}

func TestCloseTakesWhatThePipesHold(t *testing.T) {
	o, c := testOutput(t), testContainer("local")
	p := start(t, o, c)
	// A descendant keeps the pipe open.
	write(t, p.out, "last words\nand half a")
	if err := p.stream.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.stream.Drained()
	got, _ := records(t, o, c, all())
	if d := cmp.Diff([]string{"last words\n", "and half a"}, got); d != "" {
		t.Error(d)
	}
}

func TestAPumpContinuesAnother(t *testing.T) {
	o, c := testOutput(t), testContainer("json-file")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 5 {
		fd, err := dup(r)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		s, err := o.Pump(ctx, c, container.Pipes{Stdout: fd})
		if err != nil {
			t.Fatal(err)
		}
		opt := all()
		opt.Follow = true
		write(t, w, fmt.Sprintf("end %d\nbegin %d, ", i, i+1))
		want = append(want, fmt.Sprintf("begin %d, end %d\n", i, i))
		n := 0
		err = o.Logs(t.Context(), c, opt, func(container.LogRecord) error {
			if n++; n == len(want) {
				cancel()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		<-s.Drained()
	}
	want[0] = "end 0\n"
	got, _ := records(t, o, c, all())
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// A new run first logs what the old one has left.
	c.State.Pid++
	p := start(t, o, c)
	write(t, p.out, "new\n")
	p.end(t)
	got, _ = records(t, o, c, all())
	if d := cmp.Diff(append(want, "begin 5, ", "new\n"), got); d != "" {
		t.Error(d)
	}
}

func TestATornLogIsCutToItsLastWholeRecord(t *testing.T) {
	for _, driver := range []string{"local", "json-file"} {
		t.Run(driver, func(t *testing.T) {
			o, c := testOutput(t), testContainer(driver)
			fill(t, o, c, 4)
			path := o.logPath(c)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, info.Size()-5); err != nil {
				t.Fatal(err)
			}
			c.State.Pid++
			p := start(t, o, c)
			write(t, p.out, "new\n")
			p.end(t)
			got, _ := records(t, o, c, all())
			if len(got) != 4 || got[3] != "new\n" {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestATruncatedLogGoesOn(t *testing.T) {
	o, c := testOutput(t), testContainer("json-file")
	p := start(t, o, c)
	opt := all()
	opt.Follow = true
	write(t, p.out, "one\n")
	n := 0
	err := o.Logs(t.Context(), c, opt, func(r container.LogRecord) error {
		n++
		if n == 1 {
			if err := os.Truncate(o.LogPath(c), 0); err != nil {
				return err
			}
			write(t, p.out, "2\n")
			return nil
		}
		return errEnough
	})
	if err != nil {
		t.Fatal(err)
	}
	p.end(t)
	if got, _ := records(t, o, c, all()); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
