package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// spareSandboxes are made ahead, so that a start does not wait for the kernel.
const spareSandboxes = 4

// refillPause keeps the refill out of the way of the start that caused it: both
// would wait for the kernel's one lock of all networks.
const refillPause = 25 * time.Millisecond

// sandbox is an open namespace.
type sandbox struct {
	ns     *os.File
	inside *netlink.Handle
	fresh  bool // made by this process: what is in it is known

	mu     sync.Mutex
	index  map[string]int // of interfaces, by name
	routed map[int]bool   // families with a default route
}

func openSandbox(ns *os.File, inside *netlink.Handle, fresh bool) *sandbox {
	return &sandbox{ns: ns, inside: inside, fresh: fresh, index: map[string]int{}, routed: map[int]bool{}}
}

func (s *sandbox) release() {
	s.inside.Close()
	_ = s.ns.Close()
}

// refill makes namespaces ahead until Shutdown.
func (l *Links) refill() {
	defer l.done.Done()
	for {
		s, err := newSandbox()
		if err != nil {
			// The next Open says so; then it is tried again.
			select {
			case <-l.wake:
				continue
			case <-l.stop:
				l.drain()
				return
			}
		}
		select {
		case l.spares <- s:
		case <-l.stop:
			s.release()
			l.drain()
			return
		}
		if len(l.spares) < spareSandboxes-1 {
			select {
			case <-time.After(refillPause):
			case <-l.stop:
				l.drain()
				return
			}
		}
	}
}

func (l *Links) drain() {
	for {
		select {
		case s := <-l.spares:
			s.release()
		default:
			return
		}
	}
}

// spare gives a namespace made ahead, or makes one.
func (l *Links) spare() (*sandbox, error) {
	select {
	case s := <-l.spares:
		return s, nil
	default:
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return newSandbox()
}

// newSandbox makes a namespace with its loopback up, where interfaces have no
// IPv6 until they are told to, and never believe routers' advertisements.
func newSandbox() (s *sandbox, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is in another namespace for good: it ends with the goroutine.
		runtime.LockOSThread()
		s, err = unshare()
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return s, nil
}

func unshare() (*sandbox, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}); err != nil {
		h.Close()
		return nil, err
	}
	setSysctl("net/ipv6/conf/default/accept_ra", "0")
	setSysctl("net/ipv6/conf/all/accept_ra", "0")
	setSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		h.Close()
		return nil, err
	}
	return openSandbox(ns, h, true), nil
}

// Path is where a sandbox's namespace is mounted.
func (l *Links) Path(key string) string { return filepath.Join(l.dir, key) }

// Open makes a namespace with its loopback up; where it is there already it is kept.
func (l *Links) Open(_ context.Context, key string) (string, error) {
	path := l.Path(key)
	if isNamespace(path) {
		return path, nil
	}
	s, err := l.spare()
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		s.release()
		return "", err
	}
	_ = f.Close()
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(s.ns.Fd())), path, "", unix.MS_BIND, ""); err != nil {
		s.release()
		return "", errors.Join(fmt.Errorf("mount network namespace: %w", err), os.Remove(path))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[key] = s
	if len(l.open) == manyNeighbours {
		l.makeRoom()
	}
	return path, nil
}

func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// sandbox gives an open namespace, opened again after a restart.
func (l *Links) sandbox(key string) (*sandbox, error) {
	l.mu.Lock()
	s := l.open[key]
	l.mu.Unlock()
	if s != nil {
		return s, nil
	}
	path := l.Path(key)
	if !isNamespace(path) {
		return nil, fmt.Errorf("network namespace %s: %w", key, os.ErrNotExist)
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	s = openSandbox(ns, h, false)
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.open[key]; other != nil {
		s.release()
		return other, nil
	}
	l.open[key] = s
	return s, nil
}

// Close lets a namespace go; its interfaces go with it.
func (l *Links) Close(key string) error {
	l.mu.Lock()
	s := l.open[key]
	delete(l.open, key)
	l.mu.Unlock()
	if s != nil {
		s.release()
	}
	path := l.Path(key)
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Sandboxes lists the namespaces that are mounted or were.
func (l *Links) Sandboxes() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// settings writes sysctls inside the namespace, on a thread that goes there.
func (s *sandbox) settings(values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		for name, value := range values {
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				failed <- fmt.Errorf("sysctl %s: %w", strings.ReplaceAll(name, "/", "."), err)
				return
			}
		}
		failed <- nil
	}()
	return <-failed
}
