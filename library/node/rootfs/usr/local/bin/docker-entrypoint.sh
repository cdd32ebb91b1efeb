#!/bin/sh
# Options, and words that are no command, are for node.
set -eu
case ${1:-} in
-*) set -- node "$@" ;;
*) command -v "${1:-node}" >/dev/null 2>&1 || set -- node "$@" ;;
esac
exec "$@"
