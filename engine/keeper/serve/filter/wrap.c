//go:build cgo && seccomp

// libseccomp's compilation of a profile takes tens of milliseconds, in each
// process anew. It is a pure function of the calls that describe the profile.
// These functions stand between libcontainer and libseccomp (ld --wrap): they
// write down the calls ("the making") and, where exactly the same making was
// compiled before, give that program. On any difference libseccomp does its work.

#define _GNU_SOURCE
#include "wrap.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { OFF, RECORD, USE };
enum { INIT = 1, ARCH_ADD, ARCH_REMOVE, ATTR, RULE, RULE_EXACT, OTHER };

static int mode = OFF;
static int record_fd = -1;
static const void *known_making, *known_program;
static size_t known_making_size, known_program_size;

static uint64_t *making;
static size_t made, room;

scmp_filter_ctx __real_seccomp_init(uint32_t def_action);
int __real_seccomp_reset(scmp_filter_ctx ctx, uint32_t def_action);
int __real_seccomp_merge(scmp_filter_ctx dst, scmp_filter_ctx src);
int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t token);
int __real_seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t token);
int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __real_seccomp_syscall_priority(scmp_filter_ctx ctx, int syscall, uint8_t priority);
int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args);
int __real_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);
int __real_seccomp_export_pfc(const scmp_filter_ctx ctx, int fd);
int __real_seccomp_load(const scmp_filter_ctx ctx);

void berth_filter_record(int fd)
{
	mode = RECORD;
	record_fd = fd;
}

void berth_filter_use(const void *m, size_t ms, const void *p, size_t ps)
{
	mode = USE;
	known_making = m;
	known_making_size = ms;
	known_program = p;
	known_program_size = ps;
}

static int note(uint64_t word)
{
	if (made == room) {
		size_t more = room ? 2 * room : 4096;
		uint64_t *bigger = realloc(making, more * sizeof(*making));
		if (!bigger)
			return -ENOMEM;
		making = bigger;
		room = more;
	}
	making[made++] = word;
	return 0;
}

static int note_call(uint64_t what, uint64_t a, uint64_t b)
{
	if (mode == OFF)
		return 0;
	return note(what) || note(a) || note(b) ? -ENOMEM : 0;
}

static int note_rule(uint64_t what, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	if (note_call(what, action, (uint64_t)(int64_t)syscall) || note(n))
		return -ENOMEM;
	for (unsigned int i = 0; i < n; i++)
		if (note(args[i].arg) || note(args[i].op) || note(args[i].datum_a) || note(args[i].datum_b))
			return -ENOMEM;
	return 0;
}

// replay makes the rules that were only noted, as they would have been made.
static int replay(scmp_filter_ctx ctx)
{
	size_t i = 0;
	while (i < made) {
		uint64_t what = making[i];
		if (what != RULE && what != RULE_EXACT) {
			i += 3;
			continue;
		}
		unsigned int n = making[i + 3];
		struct scmp_arg_cmp args[6];
		if (n > 6)
			return -EINVAL;
		for (unsigned int a = 0; a < n; a++) {
			const uint64_t *w = making + i + 4 + 4 * (size_t)a;
			args[a].arg = w[0];
			args[a].op = w[1];
			args[a].datum_a = w[2];
			args[a].datum_b = w[3];
		}
		int rc = (what == RULE ? __real_seccomp_rule_add_array : __real_seccomp_rule_add_exact_array)(
			ctx, making[i + 1], (int)(int64_t)making[i + 2], n, args);
		if (rc)
			return rc;
		i += 4 + 4 * (size_t)n;
	}
	return 0;
}

// settle leaves the short way: what was noted is made, and what follows is libseccomp's alone.
static int settle(scmp_filter_ctx ctx)
{
	if (mode != USE)
		return 0;
	mode = OFF;
	return replay(ctx);
}

static int write_all(int fd, const void *data, size_t size)
{
	const char *at = data;
	while (size) {
		ssize_t n = write(fd, at, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		at += n;
		size -= n;
	}
	return 0;
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t def_action)
{
	made = 0;
	if (note_call(INIT, def_action, 0))
		return NULL;
	return __real_seccomp_init(def_action);
}

int __wrap_seccomp_reset(scmp_filter_ctx ctx, uint32_t def_action)
{
	int rc = settle(ctx);
	return rc ? rc : __real_seccomp_reset(ctx, def_action);
}

int __wrap_seccomp_merge(scmp_filter_ctx dst, scmp_filter_ctx src)
{
	int rc = settle(dst);
	return rc ? rc : __real_seccomp_merge(dst, src);
}

int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t token)
{
	int rc = note_call(ARCH_ADD, token, 0);
	return rc ? rc : __real_seccomp_arch_add(ctx, token);
}

int __wrap_seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t token)
{
	int rc = note_call(ARCH_REMOVE, token, 0);
	return rc ? rc : __real_seccomp_arch_remove(ctx, token);
}

int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	int rc = note_call(ATTR, attr, value);
	return rc ? rc : __real_seccomp_attr_set(ctx, attr, value);
}

int __wrap_seccomp_syscall_priority(scmp_filter_ctx ctx, int syscall, uint8_t priority)
{
	int rc = settle(ctx);
	return rc ? rc : __real_seccomp_syscall_priority(ctx, syscall, priority);
}

static int add_rule(uint64_t what, scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	if (mode != OFF) {
		int rc = note_rule(what, action, syscall, n, args);
		if (rc)
			return rc;
	}
	if (mode == USE)
		return 0;
	return (what == RULE ? __real_seccomp_rule_add_array : __real_seccomp_rule_add_exact_array)(ctx, action, syscall, n, args);
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	return add_rule(RULE, ctx, action, syscall, n, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	return add_rule(RULE_EXACT, ctx, action, syscall, n, args);
}

// What is recorded: the making, the program that libseccomp makes of it, and
// what libcontainer, which writes before it, then loads.
static const void *recorded;
static size_t recorded_size;

// loaded is called in the place of a system call that loads a filter (the
// trap of record), writes all down and ends the process.
static void loaded(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	uint64_t header[4] = {made * sizeof(*making), recorded_size, 0, 0};
	const ucontext_t *u = context;
	const struct sock_fprog *program;
#if defined(__x86_64__)
	const greg_t *r = u->uc_mcontext.gregs;
	uint64_t second = r[REG_RSI], third = r[REG_RDX];
#elif defined(__aarch64__)
	uint64_t second = u->uc_mcontext.regs[1], third = u->uc_mcontext.regs[2];
#else
#error "where does a system call have its arguments?"
#endif
	if (info->si_syscall == SYS_seccomp)
		header[2] = second; // flags
	program = (const struct sock_fprog *)third;
	header[3] = program->len * sizeof(*program->filter);
	if (write_all(record_fd, header, sizeof(header)) || write_all(record_fd, making, header[0]) || write_all(record_fd, recorded, recorded_size) ||
	    write_all(record_fd, program->filter, header[3]))
		_exit(3);
	_exit(0);
}

// trap makes every loading of a filter end in loaded.
static int trap(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])), // its low half on little endian
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_SECCOMP, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(*code), code};
	struct sigaction action = {.sa_sigaction = loaded, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	if (sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program))
		return -errno;
	return 0;
}

static int record(const scmp_filter_ctx ctx, int fd)
{
	int at = memfd_create("recorded", MFD_CLOEXEC);
	if (at < 0)
		return -errno;
	int rc = __real_seccomp_export_bpf(ctx, at);
	off_t size = rc ? 0 : lseek(at, 0, SEEK_END);
	void *program = size > 0 ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, at, 0) : MAP_FAILED;
	close(at);
	if (program == MAP_FAILED)
		return rc ? rc : -EIO;
	recorded = program;
	recorded_size = size;
	rc = trap();
	return rc ? rc : write_all(fd, program, size);
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd)
{
	size_t size = made * sizeof(*making);
	if (mode == RECORD)
		return record(ctx, fd);
	if (mode == USE && size == known_making_size && !memcmp(making, known_making, size))
		return write_all(fd, known_program, known_program_size);
	int rc = settle((scmp_filter_ctx)ctx);
	return rc ? rc : __real_seccomp_export_bpf(ctx, fd);
}

int __wrap_seccomp_export_pfc(const scmp_filter_ctx ctx, int fd)
{
	int rc = settle((scmp_filter_ctx)ctx);
	return rc ? rc : __real_seccomp_export_pfc(ctx, fd);
}

int __wrap_seccomp_load(const scmp_filter_ctx ctx)
{
	int rc = settle((scmp_filter_ctx)ctx);
	return rc ? rc : __real_seccomp_load(ctx);
}
