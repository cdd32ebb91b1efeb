// Package kit is what doors share: listeners and the limits of requests. It
// must not know what any API means.
package kit

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-project/berth/lib/fault"
)

// ListenOptions go with an address.
type ListenOptions struct {
	Group    string      // may use a unix socket; "" leaves it to root
	TLS      *tls.Config // for tcp
	Insecure bool        // plain tcp was asked for by name
}

// Listen opens an address: unix://path, tcp://host:port or fd://number.
func Listen(address string, o ListenOptions) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return nil, fault.Invalidf("the address %q needs a scheme: unix://, tcp:// or fd://", address)
	}
	switch scheme {
	case "unix":
		return listenUnix(rest, o.Group)
	case "tcp":
		if o.TLS == nil && !o.Insecure {
			return nil, fault.Invalidf("tcp without TLS gives root on this machine to everybody who reaches %s: use --tlsverify, or --tls=false to insist", rest)
		}
		l, err := net.Listen("tcp", rest)
		if err == nil && o.TLS != nil {
			l = tls.NewListener(l, o.TLS)
		}
		return l, err
	case "fd":
		n := 3
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil || n < 3 {
				return nil, fault.Invalidf("fd://%s: not a descriptor's number", rest)
			}
		}
		f := os.NewFile(uintptr(n), "listener")
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fault.Invalidf("fd://%s: descriptor %d is no socket that listens: start the daemon by socket activation (%w)", rest, n, err)
		}
		if _, tcp := l.(*net.TCPListener); tcp {
			if o.TLS == nil && !o.Insecure {
				_ = l.Close()
				return nil, fault.Invalidf("fd://%s is a tcp socket: use --tlsverify, or --tls=false to insist", rest)
			}
			if o.TLS != nil {
				l = tls.NewListener(l, o.TLS)
			}
		}
		return l, nil
	}
	return nil, fault.Invalidf("the scheme %q of %q is not known: use unix://, tcp:// or fd://", scheme, address)
}

func listenUnix(path, group string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.Invalidf("unix://%s: the path must be absolute", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// A socket that nobody answers at is of a daemon that was killed.
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fault.Conflictf("another daemon answers at unix://%s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Made under another name and without rights for others, then shown.
	fresh := path + ".new"
	_ = os.Remove(fresh)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o660)
	if err == nil && group != "" {
		err = chgrp(fresh, group)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unixListener{l, path}, nil
}

func chgrp(path, group string) error {
	gid, err := strconv.Atoi(group)
	if err != nil {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil // as dockerd: without the group the socket is root's alone
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return fmt.Errorf("group %s: %w", group, err)
		}
	}
	return os.Chown(path, 0, gid)
}

type unixListener struct {
	*net.UnixListener
	path string
}

// Close also removes the socket's name.
func (l *unixListener) Close() error {
	return errors.Join(os.Remove(l.path), l.UnixListener.Close())
}
