//go:build cgo

// The first steps of a container's process, after libcontainer's nsexec has
// put it into its namespaces and before its program. libcontainer walks them in
// Go, for which a whole runtime starts, with threads and a collector, in every
// container and every exec. Here the keeper has written them down as a plan
// (plan.go), and this walks the plan with nothing but system calls.
//
// Rules: what a plan names inside the root is resolved by openat2 within it,
// never by a string; mounts are made detached and moved to an open target;
// proc is a detached one of our own, which nobody else can reach. What fails
// is told to the parent in libcontainer's words, and ends the process.

#define _GNU_SOURCE
#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "steps.h"

// Of sys/mount.h, which cannot stand beside linux/mount.h.
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);

#ifndef MNT_DETACH
#define MNT_DETACH 2
#endif

enum { sealed = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE };

// step is one record of a plan: numbers, then strings that end with zero.
struct step {
	uint32_t op, numbers, strings, size; // size of the whole record, a multiple of 8
};

static int sync_fd = -1, init_fd = -1, log_fd = -1, fifo_fd = -1, filter_fd = -1;
static int root_fd = -1, own_proc = -1;
static int configured; // the parent has written all that it writes unasked
static int joining;    // without nsexec, and without libcontainer at the other end
static pid_t parent;

static void say(const char *text, size_t n)
{
	while (n) {
		ssize_t w = write(2, text, n);
		if (w <= 0)
			return;
		text += w;
		n -= w;
	}
}

// fail tells the parent why, as libcontainer's Go half does, and ends. With
// code, the text ends in the kernel's reason.
static void __attribute__((noreturn, format(printf, 2, 3))) fail(int code, const char *format, ...)
{
	static char text[3 * PATH_MAX], out[6 * sizeof(text) + 128];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= sizeof(text))
		n = sizeof(text) - 1;
	if (code) {
		const char *why = strerror(code);
		int m = snprintf(text + n, sizeof(text) - n, ": %c%s", why[0] >= 'A' && why[0] <= 'Z' ? why[0] + 32 : why[0], why + 1);
		n = n + m < (int)sizeof(text) ? n + m : (int)sizeof(text) - 1;
	}
	if (sync_fd < 0) {
		say(text, n);
		say("\n", 1);
		_exit(255);
	}
	// The parent still looks at this process until then, and would only tell that it is gone.
	struct pollfd pending = {.fd = init_fd, .events = POLLIN};
	while (!configured && poll(&pending, 1, -1) < 0 && errno == EINTR)
		;
	size_t at = 0;
	at += sprintf(out, "{\"type\":\"procError\",\"flags\":0,\"arg\":{\"message\":\"");
	for (int i = 0; i < n; i++) {
		unsigned char c = text[i];
		if (c == '"' || c == '\\')
			out[at++] = '\\', out[at++] = c;
		else if (c < 0x20)
			at += sprintf(out + at, "\\u%04x", c);
		else
			out[at++] = c;
	}
	at += sprintf(out + at, "\"}}");
	(void)!write(sync_fd, out, at);
	_exit(255);
}

// await sends a word and waits for the answer. What the parent writes to the
// init pipe meanwhile is libcontainer's configuration, which nobody needs here.
static void await(const char *word, const char *answer)
{
	char text[128], drain[4096];
	int n = snprintf(text, sizeof(text), "{\"type\":\"%s\",\"flags\":0}", word);
	if (write(sync_fd, text, n) != n)
		fail(errno, "sync %s", word);
	struct pollfd fds[2] = {{.fd = sync_fd, .events = POLLIN}, {.fd = init_fd, .events = POLLIN}};
	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			fail(errno, "poll");
		configured |= fds[1].revents != 0;
		if (fds[1].revents && read(init_fd, drain, sizeof(drain)) <= 0)
			fds[1].fd = -1;
		if (fds[0].revents)
			break;
	}
	ssize_t got = read(sync_fd, text, sizeof(text) - 1);
	if (got <= 0)
		_exit(255); // the parent has given up
	text[got] = 0;
	if (!strstr(text, answer))
		fail(0, "unexpected synchronisation flag: %s", text);
}

// within opens a path inside the root. Without follow no link may be on the way.
static int within(const char *path, int flags, int follow)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (follow ? 0 : RESOLVE_NO_SYMLINKS)};
	for (int try = 0;; try++) {
		int fd = syscall(SYS_openat2, root_fd, path, &how, sizeof(how));
		if (fd >= 0 || (errno != EAGAIN && errno != EINTR) || try > 128)
			return fd;
	}
}

// folders makes a folder and all above it inside the root and gives it opened.
static int folders(const char *path, int follow)
{
	char part[PATH_MAX];
	size_t n = strlen(path);
	if (n >= sizeof(part))
		return errno = ENAMETOOLONG, -1;
	int at = fcntl(root_fd, F_DUPFD_CLOEXEC, 3);
	for (size_t i = 0; at >= 0 && i < n;) {
		while (i < n && path[i] == '/')
			i++;
		size_t end = i;
		while (end < n && path[end] != '/')
			end++;
		if (end == i)
			break;
		memcpy(part, path, end);
		part[end] = 0;
		int next = within(part, O_PATH | O_DIRECTORY, follow);
		if (next < 0 && errno == ENOENT) {
			if (mkdirat(at, part + i, 0755) < 0 && errno != EEXIST) {
				int e = errno;
				close(at);
				return errno = e, -1;
			}
			next = within(part, O_PATH | O_DIRECTORY, follow);
		}
		int e = errno;
		close(at);
		errno = e;
		at = next;
		i = end;
	}
	return at;
}

// above gives the folder of a path, made where it is missing, and its last name.
static int above(const char *path, const char **name)
{
	char dir[PATH_MAX];
	const char *slash = strrchr(path, '/');
	if (!slash || strlen(path) >= sizeof(dir))
		return errno = EINVAL, -1;
	*name = slash + 1;
	memcpy(dir, path, slash - path);
	dir[slash - path] = 0;
	return folders(dir, 1);
}

// target opens the place of a mount, made where it is missing.
static int target(const char *source, const char *path, int is_file, int follow, int is_proc)
{
	struct stat st, root;
	struct statfs fs;
	int fd = within(path, O_PATH, follow);
	if (fd < 0 && errno == ENOENT) {
		if (is_file) {
			const char *name;
			int dir = above(path, &name);
			if (dir >= 0) {
				fd = openat(dir, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
				int e = errno;
				close(dir);
				errno = e;
			}
		} else {
			fd = folders(path, follow);
		}
	}
	if (fd < 0 && errno == ELOOP && !follow)
		fail(0, "error mounting \"%s\" to rootfs at \"%s\": filesystem \"%s\" must be mounted on ordinary directory", source, path, source);
	if (fd < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\": create mountpoint for %s mount: make mountpoint \"%s\"", source, path, path, path);
	if (fstat(fd, &st) < 0 || fstat(root_fd, &root) < 0 || fstatfs(fd, &fs) < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\"", source, path);
	if (st.st_dev == root.st_dev && st.st_ino == root.st_ino)
		fail(0, "error mounting \"%s\" to rootfs at \"%s\": mountpoint \"%s\" is on the top of rootfs", source, path, path);
	if (fs.f_type == PROC_SUPER_MAGIC && !is_proc)
		fail(0, "error mounting \"%s\" to rootfs at \"%s\": \"%s\" cannot be mounted because it is inside /proc", source, path, path);
	if (!!is_file == S_ISDIR(st.st_mode) && follow)
		fail(ENOTDIR, "error mounting \"%s\" to rootfs at \"%s\"", source, path);
	if (!follow && !S_ISDIR(st.st_mode))
		fail(0, "error mounting \"%s\" to rootfs at \"%s\": filesystem \"%s\" must be mounted on ordinary directory", source, path, source);
	return fd;
}

static void move(int tree, const char *source, const char *path, int at)
{
	if (syscall(SYS_move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\"", source, path);
	close(tree);
	close(at);
}

static int attributes(int tree, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation)
{
	struct mount_attr a = {.attr_set = set, .attr_clr = clear, .propagation = propagation};
	return syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | flags, &a, sizeof(a));
}

// fresh makes a file system, mounted nowhere yet. options is changed.
static int fresh(const char *type, const char *source, uint64_t attr, char *options)
{
	int fs = syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
	if (fs < 0)
		return -1;
	if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", source, 0) < 0)
		return -1;
	for (char *save, *o = strtok_r(options, ",", &save); o; o = strtok_r(NULL, ",", &save)) {
		char *value = strchr(o, '=');
		if (value)
			*value++ = 0;
		if (syscall(SYS_fsconfig, fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, o, value, 0) < 0)
			return -1;
	}
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -1;
	int tree = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, (unsigned)attr);
	int e = errno;
	close(fs);
	return errno = e, tree;
}

// proc is a proc of this process's namespaces that is mounted nowhere.
static int proc(void)
{
	char none[] = "";
	if (own_proc < 0)
		own_proc = fresh("proc", "proc", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, none);
	if (own_proc < 0)
		fail(errno, "open proc");
	return own_proc;
}

static int write_file(int dir, const char *path, const char *value)
{
	int fd = openat(dir, path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -1;
	ssize_t n = write(fd, value, strlen(value));
	int e = errno;
	close(fd);
	return errno = e, n < 0 ? -1 : 0;
}

static void keyring(const char *name, uint64_t modify, uint64_t add)
{
	char text[256];
	long ring = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name);
	if (ring < 0) {
		if (errno == ENOSYS)
			return;
		fail(errno, "unable to join session keyring: unable to create session key");
	}
	if (!modify)
		return;
	long n = syscall(SYS_keyctl, KEYCTL_DESCRIBE, ring, text, sizeof(text) - 1);
	if (n < 0 || n >= (long)sizeof(text))
		fail(n < 0 ? errno : E2BIG, "unable to mod keyring permissions");
	text[n] = 0;
	const char *at = text;
	for (int i = 0; i < 3; i++) { // type;uid;gid;permissions;name
		if (!(at = strchr(at, ';')))
			fail(0, "unable to mod keyring permissions: Destination buffer for key description is too small");
		at++;
	}
	if (syscall(SYS_keyctl, KEYCTL_SETPERM, ring, (uint32_t)strtoul(at, NULL, 16) | (uint32_t)add) < 0)
		fail(errno, "unable to mod keyring permissions");
}

static void raise_loopback(void)
{
	struct ifreq r = {.ifr_name = "lo"};
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s < 0 || ioctl(s, SIOCGIFFLAGS, &r) < 0)
		fail(errno, "raise loopback");
	r.ifr_flags |= IFF_UP;
	if (ioctl(s, SIOCSIFFLAGS, &r) < 0)
		fail(errno, "raise loopback");
	close(s);
}

static void set_root(uint64_t propagation, const char *path)
{
	if (mount("", "/", NULL, propagation, NULL) < 0)
		fail(errno, "error preparing rootfs: mount /");
	// The mount above the root must not be shared: pivot_root would fail, and the bind would reach the host.
	char up[PATH_MAX];
	snprintf(up, sizeof(up), "%s", path);
	while (mount("", up, NULL, propagation & MS_SLAVE ? MS_SLAVE : MS_PRIVATE, NULL) < 0) {
		char *slash = strrchr(up, '/');
		if (errno != EINVAL || !strcmp(up, "/") || !slash)
			fail(errno, "error preparing rootfs: remount-propagation %s", up);
		slash[slash == up] = 0;
	}
	if (mount(path, path, "bind", MS_BIND | MS_REC, NULL) < 0)
		fail(errno, "error preparing rootfs: mount %s", path);
	root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root_fd < 0)
		fail(errno, "open rootfs handle");
}

// mount_fresh mounts a new file system in the root.
static void mount_fresh(const char *type, const char *source, const char *path, uint64_t attr, const char *data)
{
	char options[PATH_MAX];
	struct stat st;
	int special = !strcmp(type, "proc") || !strcmp(type, "sysfs"), is_tmpfs = !strcmp(type, "tmpfs"), n = 0;
	if (is_tmpfs) { // one over a folder that is there has its mode
		int there = within(path, O_PATH, 1);
		if (there >= 0 && !fstat(there, &st))
			n = snprintf(options, sizeof(options), "mode=%04o,", st.st_mode & 07777);
		close(there);
	}
	if (snprintf(options + n, sizeof(options) - n, "%s", data) >= (int)sizeof(options) - n)
		fail(0, "error mounting \"%s\" to rootfs at \"%s\": its options are too long", source, path);
	int at = target(source, path, 0, !special, !strcmp(type, "proc"));
	int tree = fresh(type, source, attr, options);
	if (tree < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\"", source, path);
	move(tree, source, path, at);
}

// mount_bind binds a file or folder of the host into the root.
static void mount_bind(const char *source, const char *path, int deep, int change, uint64_t set, uint64_t propagation, int deep_propagation)
{
	struct stat st;
	int tree = syscall(SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (deep ? AT_RECURSIVE : 0));
	if (tree < 0 || fstat(tree, &st) < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\"", source, path);
	if (propagation && attributes(tree, deep_propagation ? AT_RECURSIVE : 0, 0, 0, propagation) < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\": change mount propagation", source, path);
	const uint64_t all = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	if (change && attributes(tree, 0, set, all & ~set, 0) < 0)
		fail(errno, "error mounting \"%s\" to rootfs at \"%s\": failed to set user-requested vfs flags on bind-mount", source, path);
	move(tree, source, path, target(source, path, !S_ISDIR(st.st_mode), 1, 0));
}

// mount_cgroup binds the process's own place in one hierarchy of cgroup v1.
static void mount_cgroup(const char *mountpoint, const char *controller, const char *path, uint64_t set)
{
	static char groups[16384], source[PATH_MAX];
	static ssize_t have = -1;
	if (have < 0) {
		int fd = openat(proc(), "self/cgroup", O_RDONLY | O_CLOEXEC);
		have = fd < 0 ? -1 : read(fd, groups, sizeof(groups) - 1);
		if (have < 0)
			fail(errno, "read own cgroups");
		groups[have] = 0;
		close(fd);
	}
	size_t n = strlen(controller);
	for (char *line = groups; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		char *list = strchr(line, ':'); // number:controller,controller:/path
		char *end = list ? strchr(++list, ':') : NULL;
		if (!end)
			break;
		for (char *c = list; c < end; c = strpbrk(c, ",:") + 1) {
			const char *name = strncmp(c, "name=", 5) ? c : c + 5;
			if (strncmp(name, controller, n) || (name[n] != ',' && name[n] != ':'))
				continue;
			int length = strcspn(end + 1, "\n");
			if (snprintf(source, sizeof(source), "%s%.*s", mountpoint, length, end + 1) >= (int)sizeof(source))
				fail(ENAMETOOLONG, "error mounting \"cgroup\" to rootfs at \"%s\"", path);
			mount_bind(source, path, 1, 1, set, 0, 0);
			return;
		}
	}
	fail(0, "error mounting \"cgroup\" to rootfs at \"%s\": no cgroup of controller %s", path, controller);
}

static void device(const char *path, uint64_t mode, uint64_t dev, uint64_t uid, uint64_t gid)
{
	const char *name;
	struct stat st;
	int dir = above(path, &name);
	if (dir < 0)
		fail(errno, "error creating device nodes: mkdir parent of device inode \"%s\"", path);
	if (mknodat(dir, name, mode, dev) < 0) {
		if (errno != EEXIST)
			fail(errno, "error creating device nodes: mknodat %s", path);
		close(dir);
		return;
	}
	int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		fail(errno, "error creating device nodes: open new device inode %s", path);
	if ((st.st_mode & S_IFMT) != (mode & S_IFMT) || st.st_rdev != dev)
		fail(0, "error creating device nodes: new device inode %s is another", path);
	// The mask of this process may have taken bits away. Another container may
	// share the folder: only what is open is changed.
	char opened[64];
	snprintf(opened, sizeof(opened), "self/fd/%d", fd);
	if (fchmodat(proc(), opened, mode & 07777, 0) < 0 || fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0)
		fail(errno, "error creating device nodes: update new device inode %s", path);
	close(fd);
	close(dir);
}

static void symbolic(const char *to, const char *path, int replace)
{
	const char *name;
	int dir = above(path, &name);
	if (dir < 0)
		fail(errno, "error setting up /dev symlinks: %s", path);
	if (replace && unlinkat(dir, name, 0) < 0 && errno != ENOENT)
		fail(errno, "error setting up ptmx: unlink %s", path);
	if (symlinkat(to, dir, name) < 0 && (replace || errno != EEXIST))
		fail(errno, "error setting up /dev symlinks: symlink %s", path);
	close(dir);
}

static void pivot(void)
{
	int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (old < 0 || fchdir(root_fd) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || fchdir(old) < 0)
		fail(errno, "error jailing process inside rootfs: pivot_root .");
	// Slave, so that the unmount does not reach the host.
	if (mount("", ".", NULL, MS_SLAVE | MS_REC, NULL) < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		fail(errno, "error jailing process inside rootfs: leave the old root");
	close(old);
}

static int is_null(const struct stat *st) { return S_ISCHR(st->st_mode) && st->st_rdev == makedev(1, 3); }

// own_null replaces the host's /dev/null by the container's among the standard streams.
static void own_null(void)
{
	struct stat st;
	int null = -1;
	for (int fd = 0; fd < 3; fd++) {
		if (fstat(fd, &st) < 0)
			fail(errno, "error reopening /dev/null inside container: fstat fd %d", fd);
		if (!is_null(&st))
			continue;
		if (null < 0 && ((null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0 || fstat(null, &st) < 0))
			fail(errno, "error reopening /dev/null inside container: open /dev/null");
		if (!is_null(&st))
			fail(0, "error reopening /dev/null inside container: can't reopen /dev/null: container's /dev/null is invalid");
		if (dup3(null, fd, 0) < 0)
			fail(errno, "error reopening /dev/null inside container");
	}
	if (null >= 0)
		close(null);
}

// terminal makes a pair of the container's own, gives the keeper its master, and
// puts the other end in the place of input and output.
static void terminal(int socket, int columns, int rows, int on_console)
{
	struct stat st;
	struct statfs fs;
	char name[64];
	int handle = open("/dev/pts/ptmx", O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (handle < 0)
		fail(errno, "open /dev/pts/ptmx");
	// The image may have put anything there: it must be the one of devpts (fs/devpts/inode.c).
	if (fstat(handle, &st) < 0 || fstatfs(handle, &fs) < 0)
		fail(errno, "verify ptmx handle");
	if (fs.f_type != DEVPTS_SUPER_MAGIC || st.st_ino != 2 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(5, 2))
		fail(0, "verify ptmx handle: /dev/pts/ptmx is not the device of a devpts mount");
	snprintf(name, sizeof(name), "self/fd/%d", handle);
	int number = 0, unlocked = 0, master = openat(proc(), name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (master < 0)
		fail(errno, "reopen ptmx to get new pty pair");
	close(handle);
	if (ioctl(master, TIOCGPTN, &number) < 0 || ioctl(master, TIOCSPTLCK, &unlocked) < 0)
		fail(errno, "unlock terminal");
	int peer = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (peer < 0)
		fail(errno, "failed to get peer end of newly-allocated console");
	struct winsize size = {.ws_row = rows, .ws_col = columns};
	if (rows && columns && ioctl(master, TIOCSWINSZ, &size) < 0)
		fail(errno, "set size of terminal");
	if (on_console) {
		int at = open("/dev/console", O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
		if (at < 0)
			fail(errno, "create /dev/console mount target");
		int tree = syscall(SYS_open_tree, peer, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
		if (tree < 0)
			fail(errno, "mount /dev/console");
		move(tree, "terminal", "/dev/console", at);
	}
	snprintf(name, sizeof(name), "/dev/pts/%d", number);
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} rights = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	memcpy(CMSG_DATA(&rights.head), &master, sizeof(master));
	struct iovec text = {name, strlen(name)};
	struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof(rights)};
	if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0)
		fail(errno, "send terminal");
	for (int fd = 0; fd < 3; fd++)
		if (dup3(peer, fd, 0) < 0)
			fail(errno, "put terminal in place");
	close(socket);
	close(master);
	close(peer);
	if (ioctl(0, TIOCSCTTY, 0) < 0)
		fail(errno, "take controlling terminal");
}

// make_folders is mkdir -p inside the jail.
static void make_folders(const char *path)
{
	char part[PATH_MAX];
	struct stat st;
	if (!stat(path, &st) && S_ISDIR(st.st_mode))
		return;
	if (strlen(path) >= sizeof(part))
		fail(ENAMETOOLONG, "mkdir %s", path);
	strcpy(part, path);
	for (char *p = part + 1;; p++) {
		if (*p && *p != '/')
			continue;
		char was = *p;
		*p = 0;
		if (mkdir(part, 0755) < 0 && (errno != EEXIST || stat(part, &st) < 0 || !S_ISDIR(st.st_mode)))
			fail(errno == EEXIST ? ENOTDIR : errno, "mkdir %s", part);
		*p = was;
		if (!was)
			return;
	}
}

static void read_only(const char *path)
{
	int tree = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (tree < 0 && errno == ENOENT)
		return;
	int at = tree < 0 ? -1 : open(path, O_PATH | O_CLOEXEC);
	if (at < 0 || attributes(tree, 0, MOUNT_ATTR_RDONLY, 0, 0) < 0 ||
	    syscall(SYS_move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		fail(errno, "can't make \"%s\" read-only", path);
	close(tree);
	close(at);
}

// mask hides a file behind /dev/null, a folder behind an empty one.
static void mask(const char *path)
{
	static int empty = -1, null = -1;
	struct stat st;
	int at = open(path, O_PATH | O_CLOEXEC);
	if (at < 0 && errno == ENOENT)
		return;
	if (at < 0 || fstat(at, &st) < 0)
		fail(errno, "can't mask path \"%s\"", path);
	int from = -1;
	if (S_ISDIR(st.st_mode)) {
		char options[] = "nr_blocks=1,nr_inodes=1,ro";
		if (empty < 0)
			empty = fresh("tmpfs", "tmpfs", MOUNT_ATTR_RDONLY, options);
		from = empty;
	} else {
		if (null < 0)
			null = open("/dev/null", O_PATH | O_CLOEXEC);
		if (null < 0 || fstat(null, &st) < 0 || !is_null(&st))
			fail(0, "can't mask paths: container's /dev/null is invalid");
		from = null;
	}
	// A mount that is not attached cannot be cloned by older kernels: the
	// first folder gets it, the others a clone of that.
	int tree = from;
	if (!S_ISDIR(st.st_mode) || from != empty)
		tree = syscall(SYS_open_tree, from, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	static int attached;
	if (from == empty && attached)
		tree = syscall(SYS_open_tree, from, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	if (tree < 0 || syscall(SYS_move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		fail(errno, "can't mask path \"%s\"", path);
	attached |= from == empty;
	if (tree != empty)
		close(tree);
	close(at);
}

static void load_filter(void)
{
	struct stat st;
	if (filter_fd < 0)
		fail(0, "no seccomp filter came");
	if (fstat(filter_fd, &st) < 0)
		fail(errno, "seccomp filter");
	const uint64_t *head = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, filter_fd, 0);
	if (head == MAP_FAILED)
		fail(errno, "seccomp filter");
	// filter.go: sizes of making and program, flags, size of the final program; then all three.
	size_t skip = 4 * sizeof(*head) + head[0] + head[1];
	if (head[0] > (uint64_t)st.st_size || head[1] > (uint64_t)st.st_size || head[3] > (uint64_t)st.st_size || skip + head[3] != (uint64_t)st.st_size ||
	    head[3] / sizeof(struct sock_filter) > BPF_MAXINSNS)
		fail(0, "the seccomp filter is not whole");
	struct sock_fprog program = {.len = head[3] / sizeof(struct sock_filter), .filter = (struct sock_filter *)((char *)head + skip)};
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, head[2], &program) < 0)
		fail(errno, "error loading seccomp filter into kernel");
}

// close_others closes all files that are not needed any more, before a filter
// is loaded that may forbid it.
static void close_others(void)
{
	int needed[] = {sync_fd, init_fd, log_fd, fifo_fd, filter_fd, own_proc};
	for (unsigned from = 3;;) {
		unsigned next = ~0U;
		for (size_t i = 0; i < sizeof(needed) / sizeof(*needed); i++)
			if (needed[i] >= (int)from && (unsigned)needed[i] < next)
				next = needed[i];
		if (next > from && syscall(SYS_close_range, from, next - 1, 0) < 0)
			fail(errno, "close files");
		if (next == ~0U)
			return;
		from = next + 1;
	}
}

// privileges is who the program runs as.
struct privileges {
	uint64_t uid, gid, has_capabilities, bounding, effective, permitted, inheritable, ambient, groups;
};

static void drop_privileges(const struct privileges *p, const uint64_t *groups, const char *cwd)
{
	struct stat st;
	char here[PATH_MAX];
	int again = 0;
	if (*cwd && chdir(cwd) < 0) {
		if (errno != EACCES && errno != EPERM)
			fail(errno, "chdir to cwd (\"%s\") set in config.json failed", cwd);
		again = 1; // perhaps the container's user may
	}
	for (int c = 0; p->has_capabilities && c < 64; c++) {
		int has = prctl(PR_CAPBSET_READ, c, 0, 0, 0);
		if (has < 0)
			break;
		if (has && !(p->bounding >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
			fail(errno, "unable to apply bounding set");
	}
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		fail(errno, "unable to set keep caps");
	for (int fd = 0; fd < 3; fd++) {
		if (fstat(fd, &st) < 0)
			fail(errno, "unable to setup user: fstat");
		if (st.st_uid == p->uid || is_null(&st))
			continue;
		if (fchown(fd, p->uid, -1) < 0 && errno != EPERM && errno != EROFS)
			fail(errno, "unable to setup user: fchown");
	}
	gid_t list[1024];
	if (p->groups > sizeof(list) / sizeof(*list))
		fail(0, "unable to setup user: too many groups");
	for (uint64_t i = 0; i < p->groups; i++)
		list[i] = groups[i];
	if (syscall(SYS_setgroups, (size_t)p->groups, list) < 0)
		fail(errno, "unable to setup user: setgroups");
	if (syscall(SYS_setgid, (gid_t)p->gid) < 0 || syscall(SYS_setuid, (uid_t)p->uid) < 0)
		fail(errno, "unable to setup user");
	if (again && chdir(cwd) < 0)
		fail(errno, "chdir to cwd (\"%s\") set in config.json failed", cwd);
	// The kernel says "(unreachable)" of a folder outside of this root.
	if (syscall(SYS_getcwd, here, sizeof(here)) < 0)
		fail(errno, "failed to verify if current working directory is safe");
	if (here[0] != '/')
		fail(0, "current working directory is outside of container mount namespace root -- possible container breakout detected");
	if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0)
		fail(errno, "unable to clear keep caps");
	if (!p->has_capabilities)
		return;
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	for (int i = 0; i < 2; i++) {
		data[i].effective = p->effective >> 32 * i;
		data[i].permitted = p->permitted >> 32 * i;
		data[i].inheritable = p->inheritable >> 32 * i;
	}
	if (syscall(SYS_capset, &head, data) < 0)
		fail(errno, "unable to apply caps: can't apply capabilities");
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		fail(errno, "unable to apply caps");
	for (int c = 0; c < 64; c++)
		if (p->ambient >> c & 1)
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, c, 0, 0); // as libcontainer, which goes on without
}

// runnable gives 0 where a file may be executed (Go's os/exec findExecutable).
static int runnable(const char *path)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return errno;
	if (S_ISDIR(st.st_mode))
		return EISDIR;
	if (!faccessat(AT_FDCWD, path, X_OK, AT_EACCESS))
		return 0;
	return errno != ENOSYS && errno != EPERM ? errno : st.st_mode & 0111 ? 0 : EACCES;
}

// quoted writes a text as Go's %q does, of printable characters.
static const char *quoted(const char *text)
{
	static char out[2 * PATH_MAX];
	size_t at = 0;
	for (out[at++] = '"'; *text && at < sizeof(out) - 3; text++) {
		if (*text == '"' || *text == '\\')
			out[at++] = '\\';
		out[at++] = *text;
	}
	out[at++] = '"';
	out[at] = 0;
	return out;
}

static const char *look_up(const char *name, const char *search)
{
	static char path[PATH_MAX];
	if (strchr(name, '/')) {
		int e = runnable(name);
		struct stat st;
		if (e && stat(name, &st) < 0)
			fail(e, "exec: %s: stat %s", quoted(name), name);
		if (e)
			fail(e, "exec: %s", quoted(name));
		return name;
	}
	for (const char *at = search; *name && at && *at;) {
		int n = strcspn(at, ":");
		if (snprintf(path, sizeof(path), "%.*s%s%s", n, at, n ? "/" : "./", name) < (int)sizeof(path) && !runnable(path)) {
			if (path[0] != '/')
				fail(0, "exec: %s: cannot run executable found relative to current directory", quoted(name));
			return path;
		}
		at += n + (at[n] == ':');
	}
	fail(0, "exec: %s: executable file not found in $PATH", quoted(name));
}

// join puts this process's child, which is the one that comes back, into the
// container of another process: its namespaces by one setns, its cgroups of
// version 1 by a write of its own to each "tasks", for which the kernel locks
// nobody out, as it does where a process moves another. (Of version 2 it was
// born there.)
static void join(const uint64_t *n, const char *oom_score_adj)
{
	sync_fd = n[0];
	configured = 1;
	if (*oom_score_adj && write_file(AT_FDCWD, "/proc/self/oom_score_adj", oom_score_adj) < 0)
		fail(errno, "write oom_score_adj");
	// Nobody in the container may look into a process that has more of the host than they.
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		fail(errno, "prctl(SET_DUMPABLE)");
	if (syscall(SYS_setns, (int)n[1], (int)n[2]) < 0)
		fail(errno, "join the container's namespaces");
	// A sibling: the keeper is to be its parent. A pid namespace is for children only.
	long child = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, NULL);
	if (child < 0)
		fail(errno, "clone");
	if (child > 0) {
		char text[32];
		int size = snprintf(text, sizeof(text), "{\"pid\":%ld}", child);
		_exit(write(sync_fd, text, size) != size);
	}
	for (int i = 0; i < (int)n[3]; i++)
		if (write(n[1] + 1 + i, "0", 1) != 1)
			fail(errno, "join cgroup");
	if (setsid() < 0)
		fail(errno, "setsid");
	if (syscall(SYS_setuid, 0) < 0 || syscall(SYS_setgid, 0) < 0 || syscall(SYS_setgroups, 0, NULL) < 0)
		fail(errno, "become root");
}

static void finish(int first, const char *path, char **arguments, char **environment)
{
	close(sync_fd); // says that all went well
	sync_fd = -1;
	close(init_fd);
	close(log_fd);
	if (first) {
		char name[64];
		snprintf(name, sizeof(name), "self/fd/%d", fifo_fd);
		int fd = openat(own_proc, name, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			fail(errno, "reopen exec fifo");
		if (write(fd, "0", 1) != 1)
			fail(errno, "write exec fifo");
		close(fd);
	}
	// Nothing of the host stays open: neither for the program, nor as a path to it.
	// (close_others has closed the rest.)
	close(fifo_fd);
	close(filter_fd);
	close(own_proc);
	execve(path, arguments, environment);
	fail(errno, "exec %s", path);
}

static int number(const char *name)
{
	const char *value = getenv(name);
	return value ? atoi(value) : -1;
}

static void take(const struct step *s, const uint64_t *n, char **t)
{
	switch (s->op) {
	case STEP_JOIN:
		return join(n, t[0]);
	case STEP_LIMIT: {
		struct rlimit limit = {.rlim_cur = n[1], .rlim_max = n[2]};
		if (setrlimit(n[0], &limit) < 0)
			fail(errno, "error setting rlimits for ready process: error setting rlimit type %d", (int)n[0]);
		return;
	}
	case STEP_KEYRING:
		return keyring(t[0], n[0], n[1]);
	case STEP_LOOPBACK:
		return raise_loopback();
	case STEP_ROOT:
		return set_root(n[0], t[0]);
	case STEP_FRESH:
		return mount_fresh(t[0], t[1], t[2], n[0], t[3]);
	case STEP_BIND:
		return mount_bind(t[0], t[1], n[0], n[1], n[2], n[3], n[4]);
	case STEP_CGROUP:
		return mount_cgroup(t[0], t[1], t[2], n[0]);
	case STEP_DEVICE:
		return device(t[0], n[0], n[1], n[2], n[3]);
	case STEP_LINK:
		return symbolic(t[0], t[1], n[0]);
	case STEP_HOOKS:
		return await("procHooks", "procHooksDone");
	case STEP_PIVOT:
		return pivot();
	case STEP_NULL:
		return own_null();
	case STEP_FOLDER:
		return make_folders(t[0]);
	case STEP_TERMINAL:
		return terminal(n[0] ? (int)n[0] : number("_LIBCONTAINER_CONSOLE"), n[1], n[2], n[3]);
	case STEP_REMOUNT:
		if (mount("", t[0], NULL, n[0] | MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
			fail(errno, "remount %s read-only", t[0]);
		return;
	case STEP_UMASK:
		umask(n[0]);
		return;
	case STEP_HOSTNAME:
		if (sethostname(t[0], strlen(t[0])) < 0)
			fail(errno, "sethostname");
		return;
	case STEP_DOMAIN:
		if (setdomainname(t[0], strlen(t[0])) < 0)
			fail(errno, "setdomainname");
		return;
	case STEP_APPARMOR: {
		int fd = openat(proc(), "thread-self/attr/apparmor/exec", O_PATH | O_CLOEXEC);
		const char *file = fd >= 0 ? "thread-self/attr/apparmor/exec" : "thread-self/attr/exec";
		close(fd);
		if (write_file(proc(), file, t[0]) < 0)
			fail(errno, "apparmor failed to apply profile");
		return;
	}
	case STEP_SYSCTL:
		if (write_file(proc(), t[0], t[1]) < 0)
			fail(errno, "failed to write sysctl %s = \"%s\"", t[0], t[1]);
		return;
	case STEP_READONLY:
		return read_only(t[0]);
	case STEP_MASK:
		return mask(t[0]);
	case STEP_NO_NEW_PRIVILEGES:
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
			fail(errno, "prctl(SET_NO_NEW_PRIVS)");
		return;
	case STEP_READY:
		close_others();
		if (joining) { // what comes now may not be allowed to write
			if (dprintf(sync_fd, "{\"type\":\"procReady\"}") < 0)
				fail(errno, "sync procReady");
			return;
		}
		return await("procReady", "procRun");
	case STEP_FILTER:
		return load_filter();
	case STEP_PRIVILEGES:
		return drop_privileges((const struct privileges *)n, n + sizeof(struct privileges) / sizeof(*n), t[0]);
	case STEP_PARENT:
		if (getppid() != parent)
			kill(getpid(), SIGKILL);
		return;
	case STEP_PROC:
		proc();
		return;
	}
	fail(0, "unknown step %u", s->op);
}

// plan finds the plan among the inherited descriptors and maps it.
static char *plan(size_t *size, int *fd)
{
	// The filter comes before it, where the process has one (filter.go).
	for (*fd = 3; *fd < 5; ++*fd) {
		struct stat st;
		int seals = fcntl(*fd, F_GET_SEALS);
		if (seals < 0 || (seals & sealed) != sealed || fstat(*fd, &st) < 0 || st.st_size < 16 || st.st_size > PLAN_LIMIT)
			continue;
		char *at = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, *fd, 0);
		if (at == MAP_FAILED)
			continue;
		if (!memcmp(at, PLAN_MAGIC, 8) && at[st.st_size - 1] == 0) {
			*size = st.st_size;
			return at;
		}
		munmap(at, st.st_size);
	}
	return NULL;
}

static void walk(void)
{
	size_t size = 0;
	int plan_fd = -1;
	char *at = plan(&size, &plan_fd), *end = at + size;
	if (!at && joining)
		fail(0, "no plan came");
	if (!at)
		return;
	sync_fd = number("_LIBCONTAINER_SYNCPIPE");
	init_fd = number("_LIBCONTAINER_INITPIPE");
	log_fd = number("_LIBCONTAINER_LOGPIPE");
	fifo_fd = number("_LIBCONTAINER_FIFOFD");
	filter_fd = plan_fd == 4 ? 3 : -1;
	parent = getppid();
	char *first = NULL, *search = NULL, **arguments = NULL, **environment = NULL;
	const char *path = NULL;
	for (at += 8; at < end;) {
		const struct step *s = (const struct step *)at;
		if (end - at < (long)sizeof(*s) || s->size < sizeof(*s) || s->size > end - at || s->size % 8 || s->numbers > s->size / 8)
			fail(0, "the plan is not whole");
		const uint64_t *n = (const uint64_t *)(s + 1);
		char *text = (char *)(n + s->numbers), *stop = at + s->size;
		char **t = calloc(s->strings + 1, sizeof(*t));
		if (!t)
			fail(ENOMEM, "plan");
		for (uint32_t i = 0; i < s->strings; i++) {
			char *zero = text < stop ? memchr(text, 0, stop - text) : NULL;
			if (!zero)
				fail(0, "the plan is not whole");
			t[i] = text;
			text = zero + 1;
		}
		at += s->size;
		switch (s->op) {
		case STEP_ARGUMENTS:
			arguments = t;
			first = n[0] ? "" : NULL;
			continue;
		case STEP_ENVIRONMENT:
			environment = t;
			search = t[0]; // then the variables
			environment++;
			continue;
		case STEP_LOOK_UP:
			path = look_up(arguments[0], search);
			break;
		case STEP_FINISH:
			finish(first != NULL, path, arguments, environment);
			break;
		default:
			take(s, n, t);
		}
		free(t);
	}
	fail(0, "the plan has no end");
}

// libcontainer's own code runs before the Go runtime, in a constructor that
// calls nsexec; of its three processes only the last comes back.
extern void __real_nsexec(void) __attribute__((weak));

void __wrap_nsexec(void)
{
	joining = getenv(PLAN_JOINS) != NULL;
	if (!joining)
		__real_nsexec();
	if (joining || getenv("_LIBCONTAINER_INITPIPE"))
		walk();
}
