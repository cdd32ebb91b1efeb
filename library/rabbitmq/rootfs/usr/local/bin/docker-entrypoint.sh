#!/bin/sh
# Runs the broker as rabbitmq, which owns its folder. The server itself reads
# RABBITMQ_DEFAULT_USER, _PASS and _VHOST; RABBITMQ_ERLANG_COOKIE is written to
# the file that all its tools read.
set -eu

cookie=/var/lib/rabbitmq/.erlang.cookie
case ${1:-} in
rabbitmq*)
	if [ "$(id -u)" = 0 ]; then
		if [ "$1" = rabbitmq-server ]; then
			find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq: {} +
		fi
		exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups -- "$0" "$@"
	fi
	;;
esac

for old in RABBITMQ_DEFAULT_USER_FILE RABBITMQ_DEFAULT_PASS_FILE; do
	eval "file=\${$old:-}"
	if [ -n "$file" ]; then
		[ -r "$file" ] || { echo "rabbitmq: $old: cannot read $file" >&2; exit 1; }
		eval "${old%_FILE}=\$(cat \"\$file\")"
		export "${old%_FILE}"
		unset "$old"
	fi
done

if [ -n "${RABBITMQ_ERLANG_COOKIE:-}" ]; then
	if [ -e "$cookie" ] && [ "$(cat "$cookie")" != "$RABBITMQ_ERLANG_COOKIE" ]; then
		echo "rabbitmq: warning: $cookie differs from RABBITMQ_ERLANG_COOKIE, which is taken" >&2
	fi
	(umask 077 && printf '%s' "$RABBITMQ_ERLANG_COOKIE" >"$cookie.new" && mv "$cookie.new" "$cookie")
fi
# Debian's command of the name writes into files and stays between the server and its signals.
if [ "${1:-}" = rabbitmq-server ]; then
	shift
	set -- /usr/lib/rabbitmq/bin/rabbitmq-server "$@"
fi
exec "$@"
