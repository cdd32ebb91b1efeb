package output

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth/core/container"
)

func benchOutput(b *testing.B) *Output {
	b.Helper()
	o, err := New(Options{Dir: b.TempDir(), Run: filepath.Join(b.TempDir(), "run")})
	if err != nil {
		b.Fatal(err)
	}
	return o
}

// BenchmarkLines is the way of a short line from a process to its log.
func BenchmarkLines(b *testing.B) {
	for _, driver := range []string{"local", "json-file"} {
		b.Run(driver, func(b *testing.B) {
			o, c := benchOutput(b), testContainer(driver)
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.Command("seq", "1000000", fmt.Sprint(1000000+b.N-1))
			cmd.Stdout = w
			b.ResetTimer()
			s, err := o.Pump(b.Context(), c, container.Pipes{Stdout: r})
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
			<-s.Drained()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}

// BenchmarkRead reads a log of short lines back.
func BenchmarkRead(b *testing.B) {
	for _, driver := range []string{"local", "json-file"} {
		b.Run(driver, func(b *testing.B) {
			o, c := benchOutput(b), testContainer(driver)
			p := start(b, o, c)
			cmd := exec.Command("seq", "500000")
			cmd.Stdout = p.out
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			p.end(b)
			b.ResetTimer()
			lines := 0
			for range b.N {
				if err := o.Logs(b.Context(), c, all(), func(container.LogRecord) error { lines++; return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(lines)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}

// BenchmarkTail reads the end of a long log.
func BenchmarkTail(b *testing.B) {
	for _, driver := range []string{"local", "json-file"} {
		b.Run(driver, func(b *testing.B) {
			o, c := benchOutput(b), testContainer(driver)
			p := start(b, o, c)
			cmd := exec.Command("seq", "500000")
			cmd.Stdout = p.out
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			p.end(b)
			b.ResetTimer()
			for range b.N {
				opt := all()
				opt.Tail = 10
				if err := o.Logs(b.Context(), c, opt, func(container.LogRecord) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
