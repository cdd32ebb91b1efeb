package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Watch tells the names of interfaces of the host that are deleted, until
// Shutdown. Where the kernel had more to say than there was room for, the
// name is "".
func (l *Links) Watch(deleted func(name string)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, onlyDeletions())
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)})
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	socket := os.NewFile(uintptr(fd), "notices of interfaces")
	l.done.Add(2)
	go func() {
		defer l.done.Done()
		<-l.stop
		_ = socket.Close()
	}()
	go func() {
		defer l.done.Done()
		b := make([]byte, 1<<16)
		for {
			n, err := socket.Read(b)
			switch {
			case err == nil:
				if name := interfaceName(b[:n]); name != "" {
					deleted(name)
				}
			case errors.Is(err, unix.ENOBUFS):
				deleted("")
			default:
				return
			}
		}
	}()
	return nil
}

// onlyDeletions is a socket filter (BPF): every container brings some dozen
// other notices, which nobody is to be woken for.
func onlyDeletions() *unix.SockFprog {
	var deletion [2]byte
	binary.NativeEndian.PutUint16(deletion[:], unix.RTM_DELLINK)
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(binary.BigEndian.Uint16(deletion[:])), Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: unix.SizeofNlMsghdr}, // ifi_family: a bridge's notices of its ports have their own
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_UNSPEC, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	return &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
}

// interfaceName reads one notice (rtnetlink(7)).
func interfaceName(b []byte) string {
	const attributes = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	if len(b) < attributes {
		return ""
	}
	for b = b[attributes:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.IFLA_IFNAME {
			name, _, _ := bytes.Cut(b[unix.SizeofRtAttr:size], []byte{0})
			return string(name)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return ""
}
