#!/bin/sh
# A configuration file alone is to be served.
set -eu
case ${1:-} in
*.yaml | *.yml) set -- registry serve "$@" ;;
serve | garbage-collect | help | -*) set -- registry "$@" ;;
esac
exec "$@"
