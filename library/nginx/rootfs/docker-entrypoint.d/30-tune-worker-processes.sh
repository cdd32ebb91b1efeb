#!/bin/sh
# NGINX_ENTRYPOINT_WORKER_PROCESSES_AUTOTUNE: as many workers as the cgroup
# gives processors, not as many as the machine has.
set -eu
[ -n "${NGINX_ENTRYPOINT_WORKER_PROCESSES_AUTOTUNE:-}" ] || exit 0
conf=/etc/nginx/nginx.conf
[ -w "$conf" ] || exit 0

n=$(nproc)
if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
	limit=$(((quota + period - 1) / period))
	[ "$limit" -ge "$n" ] || n=$limit
elif read -r quota 2>/dev/null </sys/fs/cgroup/cpu/cpu.cfs_quota_us && [ "$quota" -gt 0 ]; then
	read -r period </sys/fs/cgroup/cpu/cpu.cfs_period_us
	limit=$(((quota + period - 1) / period))
	[ "$limit" -ge "$n" ] || n=$limit
fi
next=$(sed "s/^worker_processes .*/worker_processes $n;/" "$conf")
printf '%s\n' "$next" >"$conf"
