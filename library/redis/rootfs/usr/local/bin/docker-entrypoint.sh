#!/bin/sh
# Options or a configuration file alone are for redis-server. Started as root,
# the server runs as redis and owns its folder.
set -eu

case ${1:-} in
-* | *.conf) set -- redis-server "$@" ;;
esac

if [ "${1:-}" = redis-server ]; then
	# In a network of containers other hosts are the point: what nobody decided
	# is open. A password or a word in the configuration closes it.
	decided=
	for word; do
		case $word in
		--protected-mode | -h | --help | -v | --version | --check-system | -) decided=yes ;;
		*.conf) if grep -qsi '^[[:space:]]*protected-mode' "$word"; then decided=yes; fi ;;
		esac
	done
	[ "$decided" ] || set -- "$@" --protected-mode no

	if [ "$(id -u)" = 0 ]; then
		find . \! -user redis -exec chown redis:redis {} + 2>/dev/null || true
		exec setpriv --reuid=redis --regid=redis --init-groups --no-new-privs -- "$@"
	fi
fi
exec "$@"
