package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long the watch waits for further changes before it writes the
// tables again; a flush of a ruleset comes as many messages.
const settle = 100 * time.Millisecond

// watch listens to what others delete from our tables.
type watch struct {
	socket *os.File
	done   sync.WaitGroup
}

// startWatch subscribes to the kernel's notices. f.mu is held.
func (f *Firewall) startWatch() (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes)
	err = ignore(fd, f.port)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	w := &watch{socket: os.NewFile(uintptr(fd), "nftables notices")}
	w.done.Add(1)
	go func() {
		defer w.done.Done()
		f.listen(w.socket)
	}()
	return w, nil
}

// ignore keeps notices of what one port changes out of the socket, however many
// they are: a repair of a large table would not leave room for others', and be
// taken for damage.
func (w *watch) ignore(port uint32) error {
	raw, err := w.socket.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = ignore(int(fd), port) })
	return errors.Join(err, set)
}

// ignore attaches a socket filter (BPF). One transaction's notices come together
// and have all the port of who wrote it.
func ignore(fd int, port uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], port)
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12}, // nlmsg_pid
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: binary.BigEndian.Uint32(b[:]), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}))
}

func (w *watch) stop() {
	_ = w.socket.Close()
	w.done.Wait()
}

// change is what others have done.
type change struct{ damage, rules bool }

func (c change) any() bool { return c.damage || c.rules }

// listen writes the tables again after another program deletes from them, and
// follows what the host's own firewall does.
func (f *Firewall) listen(socket *os.File) {
	b := make([]byte, 1<<16)
	var seen change
	for {
		n, err := socket.Read(b)
		switch {
		case err == nil:
			before := seen.any()
			f.read(b[:n], &seen)
			if !before && seen.any() {
				_ = socket.SetReadDeadline(time.Now().Add(settle))
			}
		case errors.Is(err, unix.ENOBUFS):
			seen.damage = true // something was missed
			_ = socket.SetReadDeadline(time.Now().Add(settle))
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = socket.SetReadDeadline(time.Time{})
			f.repair(seen)
			seen = change{}
		default:
			return
		}
	}
}

func (f *Firewall) repair(c change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watch == nil {
		return // closing
	}
	if c.damage {
		f.log.Warn("the firewall was changed by another program and is written again", "table", f.name)
		if err := f.write(); err != nil {
			f.log.Error("firewall not written again", "table", f.name, "error", err)
		}
	}
	f.tryCoexist()
}

// read notes what notices say of deletions from our tables and of changes of
// other tables' rules, both by others.
func (f *Firewall) read(b []byte, seen *change) {
	const header, family = 16, 4 // struct nlmsghdr, struct nfgenmsg
	for len(b) >= header+family {
		length := binary.NativeEndian.Uint32(b)
		if length < header+family || int(length) > len(b) {
			return
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES {
			ours := tableOf(b[header+family:length]) == f.name
			switch byte(kind) {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
				seen.damage = seen.damage || ours
				seen.rules = seen.rules || !ours
			case unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
				seen.damage = seen.damage || ours
			case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWRULE:
				seen.rules = seen.rules || !ours
			}
		}
		b = b[min(len(b), int(length+3)&^3):]
	}
}

// tableOf reads the table's name, attribute 1 of all these messages.
func tableOf(b []byte) string {
	for len(b) >= 4 {
		length, kind := binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint16(b[2:])
		if length < 4 || int(length) > len(b) {
			return ""
		}
		if kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == 1 {
			return string(bytes.TrimRight(b[4:length], "\x00"))
		}
		b = b[min(len(b), int(length+3)&^3):]
	}
	return ""
}
