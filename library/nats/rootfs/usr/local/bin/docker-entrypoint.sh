#!/bin/sh
# Options alone are for nats-server.
set -eu
case ${1:-} in
-*) set -- nats-server "$@" ;;
esac
exec "$@"
