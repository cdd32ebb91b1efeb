//go:build cgo && seccomp

// libseccomp's compilation of a profile takes tens of milliseconds, in each
// process anew. It is a pure function of the calls that describe the profile.
// These functions stand between libcontainer and libseccomp (ld --wrap): they
// write down the calls ("the making") and, where exactly the same making was
// compiled before, give that program. On any difference libseccomp does its work.

#include "wrap.h"

#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
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

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd)
{
	size_t size = made * sizeof(*making);
	if (mode == RECORD) {
		uint64_t header = size;
		if (write_all(record_fd, &header, sizeof(header)) || write_all(record_fd, making, size))
			_exit(3);
		_exit(__real_seccomp_export_bpf(ctx, record_fd) ? 3 : 0);
	}
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
