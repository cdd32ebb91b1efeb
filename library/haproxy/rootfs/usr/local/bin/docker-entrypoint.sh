#!/bin/sh
# Options alone are for haproxy, which stays in the foreground with a master
# that reloads on SIGUSR2 and SIGHUP.
#
# The master executes itself once more when its worker runs, and loses a signal
# of that moment: a container that is stopped soon after its start would run on.
# So this shell stays before it and asks again each second until it has ended.
set -eu
case ${1:-} in
-*) set -- haproxy "$@" ;;
esac
if [ "${1:-}" != haproxy ]; then
	exec "$@"
fi
shift

child=
stop() {
	[ -n "$child" ] || exit 0
	trap '' "$1"
	(while kill -s "$1" "$child" 2>/dev/null; do sleep 1; done) &
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
trap 'stop INT' INT
trap 'kill -s USR2 "$child"' USR2 HUP

haproxy -W -db "$@" <&0 &
child=$!
while :; do
	code=0
	wait "$child" || code=$?
	# A signal ends the wait as well.
	kill -0 "$child" 2>/dev/null || exit "$code"
done
