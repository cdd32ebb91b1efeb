package serve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper"
)

// open makes the streams. It returns the ends of the process, to be closed
// here once it has them; with a terminal, the socket for it and its other end.
func (p *process) open() (theirs []*os.File, err error) {
	if p.Streams.TTY {
		p.Streams = keeper.StreamSet{TTY: true}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		child, parent := os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
		p.lib.ConsoleSocket = child
		return []*os.File{child, parent}, nil
	}
	stream := func(wanted, input bool, fifo string) (ours, their *os.File) {
		if err != nil {
			return nil, nil
		}
		switch {
		case fifo != "":
			ours, their, err = openFifo(fifo, input)
		case wanted:
			ours, their, err = pipe(input)
		default:
			their, err = os.OpenFile("/dev/null", os.O_RDWR, 0)
		}
		if their != nil {
			theirs = append(theirs, their)
		}
		return ours, their
	}
	var in, out, errs *os.File
	p.pipes.Stdin, in = stream(p.Streams.Stdin, true, p.fifos.Stdin)
	p.pipes.Stdout, out = stream(p.Streams.Stdout, false, p.fifos.Stdout)
	p.pipes.Stderr, errs = stream(p.Streams.Stderr, false, p.fifos.Stderr)
	p.Streams, _ = p.pipes.List()
	for i, f := range []*os.File{p.pipes.Stdout, p.pipes.Stderr} {
		if f != nil && err == nil {
			p.Outputs[i], err = inode(f)
		}
	}
	p.lib.Stdin, p.lib.Stdout, p.lib.Stderr = in, out, errs
	return theirs, err
}

func receiveTTY(socket *os.File) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096)
	_, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors came: %w", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// pipe makes a stream; input goes to the process.
func pipe(input bool) (ours, their *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	if input {
		return w, r, nil
	}
	return r, w, nil
}

func inode(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// recoverOutputs opens the pipes of a process's output anew through processes
// of its container that still have them, with what is in them. (What a process
// wrote while neither keeper nor daemon lived broke the pipe: an end of its own
// to read would heal that, but to some programs a standard output that can be
// read has been closed.) Input and terminals end with the last who held them.
// c.mu is held.
func (c *container) recoverOutputs(p *process) {
	if p.Outputs == [2]uint64{} {
		return
	}
	pids, _ := c.lib.Processes() // without it there is the one
	for _, pid := range append([]int{p.Pid}, pids...) {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			for i, to := range []**os.File{&p.pipes.Stdout, &p.pipes.Stderr} {
				if *to == nil && p.Outputs[i] != 0 {
					*to = reopen(filepath.Join(dir, fd.Name()), p.Outputs[i])
				}
			}
		}
		if (p.pipes.Stdout != nil || p.Outputs[0] == 0) && (p.pipes.Stderr != nil || p.Outputs[1] == 0) {
			break
		}
	}
	p.Streams, _ = p.pipes.List()
}

// reopen gives a reading end of the pipe at a path of /proc, or nil where it is
// another file: what a container's processes have open is theirs to choose.
func reopen(path string, ino uint64) *os.File {
	if name, err := os.Readlink(path); err != nil || name != fmt.Sprintf("pipe:[%d]", ino) {
		return nil
	}
	at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(at)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(at, &st) != nil || unix.Fstatfs(at, &fs) != nil || st.Ino != ino || fs.Type != unix.PIPEFS_MAGIC {
		return nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "pipe")
}

// openFifo opens both ends of a client's fifo: the process's, and the opposite
// one, so that it sees neither an end of input nor a broken pipe while the
// client is away. Another file gets output at its end.
func openFifo(path string, input bool) (ours, their *os.File, err error) {
	info, err := os.Stat(path)
	if err != nil && (input || !errors.Is(err, os.ErrNotExist)) {
		return nil, nil, err
	}
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		if input {
			their, err = os.Open(path)
		} else {
			their, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		}
		return nil, their, err
	}
	// Opened for both it never blocks; with it open neither do the others.
	both, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(both)
	end := func(flag int) *os.File {
		fd := -1
		if err == nil {
			if fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", both), flag|unix.O_CLOEXEC, 0); err == nil {
				return os.NewFile(uintptr(fd), path)
			}
		}
		return nil
	}
	ours, their = end(unix.O_RDONLY), end(unix.O_WRONLY)
	if input {
		ours, their = their, ours
	}
	if err != nil {
		for _, f := range []*os.File{ours, their} {
			if f != nil {
				_ = f.Close()
			}
		}
		return nil, nil, err
	}
	return ours, their, nil
}
