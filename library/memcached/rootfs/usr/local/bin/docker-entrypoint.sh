#!/bin/sh
# Options alone are for memcached.
set -eu
case ${1:-} in
-*) set -- memcached "$@" ;;
esac
exec "$@"
