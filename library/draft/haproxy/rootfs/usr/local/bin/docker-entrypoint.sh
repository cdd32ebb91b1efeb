#!/bin/sh
# Options alone are for haproxy, which stays in the foreground with a master
# that reloads on SIGUSR2.
set -eu
case ${1:-} in
-*) set -- haproxy "$@" ;;
esac
if [ "${1:-}" = haproxy ]; then
	shift
	set -- haproxy -W -db "$@"
fi
exec "$@"
