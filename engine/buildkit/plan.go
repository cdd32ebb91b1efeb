package buildkit

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/format/include"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/holes"
	"github.com/berth-project/berth/lib/inflate"
	"github.com/berth-project/berth/lib/redact"
)

// maxDockerfile bounds what is read of a Dockerfile, in bytes.
const maxDockerfile = 4 << 20

// maxStages bounds the stages of a Dockerfile whose plan is told: to find out
// which are needed costs their square.
const maxStages = 1000

// spool keeps a context on disk, without a name, until it is closed: BuildKit
// reads it when it is ready for it.
func (b *Builder) spool(r io.Reader) (*os.File, error) {
	f, err := b.nameless("context")
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read context: %w", err), f.Close())
	}
	return f, nil
}

// archive makes a plain archive begin with its root: BuildKit looks at the
// first kilobyte alone, which pax headers can fill. Anything else stays as it is.
func archive(f *os.File) (io.Reader, error) {
	_, err := tar.NewReader(f).Next()
	if _, again := f.Seek(0, io.SeekStart); again != nil {
		return nil, again
	}
	if err != nil {
		return f, nil
	}
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return io.MultiReader(&head, f), nil
}

// plan lists the instructions that a build goes through, in the order of the
// Dockerfile; begun tells that nothing is wrong with the file, its target and
// its platform, as far as that can be told without BuildKit, which says best
// what is wrong. A context that is no archive is an error. The file is rewound.
func plan(ctx context.Context, f *os.File, r build.Request) (list []build.Instruction, begun bool, err error) {
	defer func() { _, _ = f.Seek(0, io.SeekStart) }()
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &disk); err != nil {
		return nil, false, os.NewSyscallError("fstatfs", err)
	}
	read := func(name string) ([]byte, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return dockerfileOf(whileAlive{ctx, f}, name, int64(disk.Bavail)*disk.Bsize)
	}
	name := cmp.Or(r.Dockerfile, "Dockerfile")
	text, err := read(name)
	if err == nil {
		if text, err = include.Expand(strings.TrimPrefix(path.Clean("/"+name), "/"), text, read); err != nil && ctx.Err() == nil {
			return nil, false, nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, false, context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil // a link may lead to it
	case errors.Is(err, fault.ErrExhausted), errors.Is(err, fault.ErrInvalid):
		return nil, false, err
	case err != nil:
		return nil, false, fault.Invalidf("the context is no readable archive: %w", err)
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, false, nil
	}
	stages, meta, err := instructions.Parse(parsed.AST, linter.New(&linter.Config{}))
	if err != nil || len(stages) == 0 || r.Target != "" && stageOf(stages, r.Target, len(stages)) < 0 {
		return nil, false, nil
	}
	if r.Platform != "" {
		if _, err := platforms.Parse(r.Platform); err != nil {
			return nil, false, nil
		}
	}
	if len(stages) > maxStages {
		return nil, true, nil
	}
	for _, a := range meta {
		list = append(list, build.Instruction{Text: a.String()})
	}
	used := reachable(stages, r.Target)
	for i, s := range stages {
		if used[i] {
			list = append(list, stagePlan(stages, i, s, several(stages))...)
		}
	}
	for i := range list {
		list[i].Text = redact.URLs(list[i].Text)
	}
	return list, true, nil
}

// several tells whether BuildKit puts the name of a stage before its steps: it
// counts what files are taken of, and an empty image for each other mount.
func several(stages []instructions.Stage) bool {
	return len(stages) > 1 || len(stages) == 1 && slices.ContainsFunc(stages[0].Commands, func(c instructions.Command) bool {
		switch c := c.(type) {
		case *instructions.CopyCommand:
			return c.From != ""
		case *instructions.RunCommand:
			return len(instructions.GetMounts(c)) > 0
		}
		return false
	})
}

// whileAlive fails when ctx ends: a small archive may unpack to what takes days.
type whileAlive struct {
	ctx context.Context
	r   io.Reader
}

func (w whileAlive) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}

// dockerfileOf gives the file of a name. It reads an archive to its end, and
// refuses one that would fill the disk: BuildKit unpacks whatever it is given.
func dockerfileOf(r io.Reader, name string, free int64) (text []byte, err error) {
	plain, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	found := false
	for t := tar.NewReader(plain); ; {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF) && !found:
			return nil, fs.ErrNotExist
		case errors.Is(err, io.EOF):
			return text, nil
		case err != nil:
			return nil, err
		case holes.TooLarge(h):
			return nil, fault.Invalidf("the context holds %q of %d bytes, stored with holes: the limit of such files is %d", h.Name, h.Size, holes.Limit)
		}
		if free -= h.Size; free < 0 {
			return nil, &fault.Error{Class: fault.ErrExhausted, Msg: "no space left on device: unpacked, the context takes more"}
		}
		if !found && path.Clean("/"+h.Name) == path.Clean("/"+name) && h.Typeflag == tar.TypeReg {
			found = true
			if text, err = io.ReadAll(io.LimitReader(t, maxDockerfile)); err != nil {
				return nil, err
			}
		}
	}
}

// stageOf finds a stage by its number or name among those before one; -1 is none.
func stageOf(stages []instructions.Stage, name string, before int) int {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < before {
		return n
	}
	for i := before - 1; i >= 0; i-- {
		if name != "" && strings.EqualFold(stages[i].Name, name) {
			return i
		}
	}
	return -1
}

// reachable tells which stages the target needs.
func reachable(stages []instructions.Stage, target string) map[int]bool {
	last := len(stages) - 1
	if target != "" {
		if i := stageOf(stages, target, len(stages)); i >= 0 {
			last = i
		}
	}
	used := map[int]bool{}
	for todo := []int{last}; len(todo) > 0; {
		i := todo[0]
		todo = todo[1:]
		if i < 0 || used[i] {
			continue
		}
		used[i] = true
		todo = append(todo, stageOf(stages, stages[i].BaseName, i))
		for _, c := range stages[i].Commands {
			switch c := c.(type) {
			case *instructions.CopyCommand:
				todo = append(todo, stageOf(stages, c.From, i))
			case *instructions.RunCommand:
				for _, m := range instructions.GetMounts(c) {
					todo = append(todo, stageOf(stages, m.From, i))
				}
			}
		}
	}
	return used
}

func stagePlan(stages []instructions.Stage, i int, s instructions.Stage, several bool) []build.Instruction {
	label := ""
	if several {
		label = s.Name
		if label == "" {
			label = fmt.Sprintf("stage-%d", i)
		}
		label += " "
	}
	own := slices.ContainsFunc(stages[:i], func(o instructions.Stage) bool { return o.Name != "" && strings.EqualFold(o.Name, s.BaseName) })
	makes := func(c instructions.Command) bool {
		switch c.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
			return true
		}
		return false
	}
	total, at := 0, 0
	if s.BaseName != "scratch" && !own {
		total = 1
	}
	first := total
	for _, c := range s.Commands {
		if makes(c) {
			total++
		}
	}
	step := func() string { at++; return fmt.Sprintf("%s%d/%d", label, at, total) }
	from := build.Instruction{Text: s.OrigCmd + " " + s.BaseName}
	if s.Name != "" {
		from.Text += " AS " + s.Name
	}
	if first == 1 {
		from.Step = step()
	}
	list := []build.Instruction{from}
	for _, c := range s.Commands {
		one := build.Instruction{Text: fmt.Sprint(c)}
		if str, ok := c.(fmt.Stringer); ok {
			one.Text = str.String()
		}
		if makes(c) {
			one.Step = step()
		}
		list = append(list, one)
	}
	return list
}
