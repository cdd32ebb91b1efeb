#!/bin/sh
# Tells whether the server serves. Options may be joined:
#   --connect              it answers by network (the server of the first start does not)
#   --innodb_initialized   its storage is ready
# Without options it is --connect. The user is healthcheck where the entry
# point could make one, and nobody's password is needed: a refused login is an
# answer, too.
set -eu

defaults=/var/lib/mysql/.my-healthcheck.cnf
ask() {
	if [ -r "$defaults" ]; then
		mariadb --defaults-file="$defaults" --skip-ssl -h127.0.0.1 --protocol tcp -Ne "$1" 2>&1
	else
		mariadb --no-defaults --skip-ssl -h127.0.0.1 --protocol tcp -uhealthcheck -Ne "$1" 2>&1
	fi
}

[ $# -gt 0 ] || set -- --connect
for option; do
	case $option in
	--connect)
		out=$(ask 'select 1') || case $out in
		*"ERROR 1045"* | *"ERROR 1698"* | *"ERROR 1130"*) ;;
		*) echo "$out"; exit 1 ;;
		esac
		;;
	--innodb_initialized)
		out=$(ask "select 1 from information_schema.engines where engine='innodb' and support in ('YES', 'DEFAULT', 'ENABLED')") || case $out in
		*"ERROR 1045"* | *"ERROR 1698"* | *"ERROR 1130"*) ;;
		*) echo "$out"; exit 1 ;;
		esac
		;;
	--su=* | --su-mysql | --datadir=* | --no-defaults) ;;
	*) echo "healthcheck.sh: unknown option $option" >&2; exit 1 ;;
	esac
done
