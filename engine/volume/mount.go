package volume

import (
	"errors"
	"net"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

// flag is an option of mount(8) that is a bit of mount(2).
type flag struct {
	clear bool
	bit   uintptr
}

func flagOf(option string) (flag, bool) {
	switch option {
	case "defaults":
		return flag{}, true
	case "ro":
		return flag{false, unix.MS_RDONLY}, true
	case "rw":
		return flag{true, unix.MS_RDONLY}, true
	case "nosuid":
		return flag{false, unix.MS_NOSUID}, true
	case "suid":
		return flag{true, unix.MS_NOSUID}, true
	case "nodev":
		return flag{false, unix.MS_NODEV}, true
	case "dev":
		return flag{true, unix.MS_NODEV}, true
	case "noexec":
		return flag{false, unix.MS_NOEXEC}, true
	case "exec":
		return flag{true, unix.MS_NOEXEC}, true
	case "sync":
		return flag{false, unix.MS_SYNCHRONOUS}, true
	case "async":
		return flag{true, unix.MS_SYNCHRONOUS}, true
	case "dirsync":
		return flag{false, unix.MS_DIRSYNC}, true
	case "noatime":
		return flag{false, unix.MS_NOATIME}, true
	case "atime":
		return flag{true, unix.MS_NOATIME}, true
	case "nodiratime":
		return flag{false, unix.MS_NODIRATIME}, true
	case "diratime":
		return flag{true, unix.MS_NODIRATIME}, true
	case "relatime":
		return flag{false, unix.MS_RELATIME}, true
	case "norelatime":
		return flag{true, unix.MS_RELATIME}, true
	case "strictatime":
		return flag{false, unix.MS_STRICTATIME}, true
	case "bind":
		return flag{false, unix.MS_BIND}, true
	case "rbind":
		return flag{false, unix.MS_BIND | unix.MS_REC}, true
	}
	if p := propagationOf(option); p != 0 {
		return flag{}, true
	}
	return flag{}, false
}

func propagationOf(option string) uintptr {
	switch option {
	case "private":
		return unix.MS_PRIVATE
	case "rprivate":
		return unix.MS_PRIVATE | unix.MS_REC
	case "shared":
		return unix.MS_SHARED
	case "rshared":
		return unix.MS_SHARED | unix.MS_REC
	case "slave":
		return unix.MS_SLAVE
	case "rslave":
		return unix.MS_SLAVE | unix.MS_REC
	}
	return 0
}

// wanted is a mount as the kernel is asked for it.
type wanted struct {
	kind, device string
	flags        uintptr
	propagation  uintptr
	data         string
}

func parseMount(options map[string]string) wanted {
	w := wanted{kind: options["type"], device: options["device"]}
	var data []string
	for _, o := range strings.Split(options["o"], ",") {
		f, known := flagOf(o)
		switch {
		case o == "":
		case !known:
			data = append(data, o)
		case f.clear:
			w.flags &^= f.bit
		default:
			w.flags |= f.bit
			w.propagation |= propagationOf(o)
		}
	}
	w.data = strings.Join(data, ",")
	return w
}

// resolveServer puts an address in the place of a server's name in addr=:
// the kernel knows no names.
func (w *wanted) resolveServer() error {
	if !strings.HasPrefix(w.kind, "nfs") && w.kind != "cifs" {
		return nil
	}
	parts := strings.Split(w.data, ",")
	for i, p := range parts {
		name, ok := strings.CutPrefix(p, "addr=")
		if !ok || net.ParseIP(name) != nil {
			continue
		}
		ip, err := net.ResolveIPAddr("ip", name)
		if err != nil {
			return fault.Unavailablef("error resolving passed in network volume address: %w", err)
		}
		parts[i] = "addr=" + ip.String()
	}
	w.data = strings.Join(parts, ",")
	return nil
}

// Mount mounts what the options say; without options it is the folder itself.
func (l *Local) Mount(v volume.Volume) error {
	if err := l.mount(v); err != nil {
		return err
	}
	return l.settle(v) // a daemon may have been killed while it filled it
}

func (l *Local) mount(v volume.Volume) error {
	if len(v.Options) == 0 {
		return nil
	}
	mounted, err := mountinfo.Mounted(v.Mountpoint)
	if err != nil || mounted {
		return err
	}
	w := parseMount(v.Options)
	if err := w.resolveServer(); err != nil {
		return err
	}
	failed := func(err error) error {
		hint := ""
		if errors.Is(err, unix.ENODEV) {
			hint = " (this host's kernel has no file system \"" + w.kind + "\")"
		}
		data := ""
		if w.data != "" {
			data = ", data: " + strings.ReplaceAll(w.data, password(w.data), "password=********")
		}
		return fault.Internalf("error while mounting volume '%s': failed to mount local volume: mount %s:%s, flags: %#x%s: %w%s",
			v.Mountpoint, w.device, v.Mountpoint, w.flags, data, err, hint)
	}
	if err := unix.Mount(w.device, v.Mountpoint, w.kind, w.flags, w.data); err != nil {
		return failed(err)
	}
	// A bind ignores most flags at first.
	if rest := w.flags &^ (unix.MS_BIND | unix.MS_REC); w.flags&unix.MS_BIND != 0 && rest != 0 {
		if err := unix.Mount("", v.Mountpoint, "", unix.MS_BIND|unix.MS_REMOUNT|rest, ""); err != nil {
			return errors.Join(failed(err), l.Unmount(v))
		}
	}
	if w.propagation != 0 {
		if err := unix.Mount("", v.Mountpoint, "", w.propagation, ""); err != nil {
			return errors.Join(failed(err), l.Unmount(v))
		}
	}
	return nil
}

// password finds the option that no error may show.
func password(data string) string {
	for _, p := range strings.Split(data, ",") {
		if strings.HasPrefix(p, "password=") {
			return p
		}
	}
	return "\x00" // in no option
}

// Unmount undoes Mount.
func (l *Local) Unmount(v volume.Volume) error {
	if len(v.Options) == 0 {
		return nil
	}
	err := unix.Unmount(v.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // nothing is mounted
	}
	return err
}
