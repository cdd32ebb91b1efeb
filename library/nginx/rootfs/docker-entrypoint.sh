#!/bin/sh
# Before the server starts, the scripts of /docker-entrypoint.d run in order of
# name: *.envsh are read, so that they may set variables; *.sh run.
set -eu

say() { [ -n "${NGINX_ENTRYPOINT_QUIET_LOGS:-}" ] || echo "nginx: $*"; }

case ${1:-} in
nginx | nginx-debug)
	for file in /docker-entrypoint.d/*; do
		[ -e "$file" ] || continue
		case $file in
		*.envsh)
			if [ -x "$file" ]; then
				say "read $file"
				# shellcheck disable=SC1090
				. "$file"
			else
				say "ignore $file: not executable"
			fi
			;;
		*.sh)
			if [ -x "$file" ]; then
				say "run $file"
				"$file"
			else
				say "ignore $file: not executable"
			fi
			;;
		*) say "ignore $file" ;;
		esac
	done
	;;
esac
exec "$@"
