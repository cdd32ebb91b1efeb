#!/bin/sh
# Makes a database where there is none, then runs the server as postgres.
#
#   POSTGRES_PASSWORD          of the superuser; needed unless trust is asked for
#   POSTGRES_USER              the superuser's name (postgres)
#   POSTGRES_DB                a database to make (the user's name)
#   POSTGRES_INITDB_ARGS       further options of initdb
#   POSTGRES_INITDB_WALDIR     another folder for the write-ahead log
#   POSTGRES_HOST_AUTH_METHOD  for clients by network (the server's password encryption)
#   PGDATA                     where the database lies
#
# The first four are also read from the file that POSTGRES_..._FILE names.
# /docker-entrypoint-initdb.d: *.sh runs (or is read, when it is not
# executable), *.sql, *.sql.gz, *.sql.xz and *.sql.zst go to psql, in order of name.
set -eu

say() { printf '%s\n' "postgres: $*"; }
die() { printf '%s\n' "postgres: $*" >&2; exit 1; }

# from_file NAME [DEFAULT]: the value of NAME, of the file NAME_FILE, or DEFAULT.
from_file() {
	eval "value=\${$1:-} file=\${$1_FILE:-}"
	[ -z "$value" ] || [ -z "$file" ] || die "both $1 and $1_FILE are set: keep one"
	if [ -n "$file" ]; then
		[ -r "$file" ] || die "$1_FILE: cannot read $file"
		value=$(cat "$file")
	fi
	[ -n "$value" ] || value=${2:-}
	eval "$1=\$value"
	export "${1?}"
	unset "$1_FILE"
}

folders() {
	mkdir -p "$PGDATA" /var/run/postgresql
	chmod 00700 "$PGDATA" 2>/dev/null || true
	chmod 03775 /var/run/postgresql 2>/dev/null || true
	if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
		mkdir -p "$POSTGRES_INITDB_WALDIR"
		chmod 700 "$POSTGRES_INITDB_WALDIR"
	fi
	[ "$(id -u)" = 0 ] || return 0
	find "$PGDATA" ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"} \! -user postgres -exec chown postgres {} +
	find /var/run/postgresql \! -user postgres -exec chown postgres {} +
}

# wanted ARGS: whether the command is one that starts the server.
wanted() {
	for word; do
		case $word in
		-\? | --help | --describe-config | -V | --version) return 1 ;;
		esac
	done
}

check_password() {
	if [ -z "$POSTGRES_PASSWORD" ] && [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
		die "the database is not made yet and has no password.
  Give one:            -e POSTGRES_PASSWORD=secret
  or let everybody in: -e POSTGRES_HOST_AUTH_METHOD=trust"
	fi
	if [ "${POSTGRES_HOST_AUTH_METHOD:-}" = trust ]; then
		say "warning: POSTGRES_HOST_AUTH_METHOD=trust lets everybody in without a password" >&2
	fi
}

make_database() {
	# initdb wants a name for its user; an arbitrary --user has none.
	if ! getent passwd "$(id -u)" >/dev/null; then
		for lib in /usr/lib/*/libnss_wrapper.so; do
			NSS_WRAPPER_PASSWD=$(mktemp) NSS_WRAPPER_GROUP=$(mktemp) LD_PRELOAD=$lib
			export NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP LD_PRELOAD
			echo "postgres:x:$(id -u):$(id -g):PostgreSQL:$PGDATA:/bin/false" >"$NSS_WRAPPER_PASSWD"
			echo "postgres:x:$(id -g):" >"$NSS_WRAPPER_GROUP"
		done
	fi
	secret=$(mktemp)
	printf '%s\n' "$POSTGRES_PASSWORD" >"$secret"
	# The options are words by design.
	# shellcheck disable=SC2086
	eval 'initdb --username="$POSTGRES_USER" ${POSTGRES_PASSWORD:+--pwfile="$secret"} ${POSTGRES_INITDB_WALDIR:+--waldir="$POSTGRES_INITDB_WALDIR"} '"${POSTGRES_INITDB_ARGS:-}"' "$@"' || { rm -f "$secret"; die "initdb failed"; }
	rm -f "$secret"
	if [ -n "${NSS_WRAPPER_PASSWD:-}" ]; then
		rm -f "$NSS_WRAPPER_PASSWD" "$NSS_WRAPPER_GROUP"
		unset LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
	fi
}

allow_network() {
	method=${POSTGRES_HOST_AUTH_METHOD:-$(postgres -C password_encryption "$@")}
	{
		echo
		[ "$method" != trust ] || echo "# POSTGRES_HOST_AUTH_METHOD=trust: everybody is let in"
		echo "host all all all $method"
	} >>"$PGDATA/pg_hba.conf"
}

sql() { psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --no-password "$@"; }

init_files() {
	for file in /docker-entrypoint-initdb.d/*; do
		case $file in
		*.sh)
			if [ -x "$file" ]; then
				say "run $file"
				"$file"
			else
				say "read $file"
				# shellcheck disable=SC1090
				. "$file"
			fi
			;;
		*.sql) say "load $file"; sql --dbname "$POSTGRES_DB" -f "$file" ;;
		*.sql.gz) say "load $file"; gunzip -c "$file" | sql --dbname "$POSTGRES_DB" ;;
		*.sql.xz) say "load $file"; xzcat "$file" | sql --dbname "$POSTGRES_DB" ;;
		*.sql.zst) say "load $file"; zstd -dc "$file" | sql --dbname "$POSTGRES_DB" ;;
		*/\*) ;;
		*) say "ignore $file" ;;
		esac
	done
}

case ${1:-} in
-*) set -- postgres "$@" ;;
esac

if [ "${1:-}" = postgres ] && wanted "$@"; then
	folders
	if [ "$(id -u)" = 0 ]; then
		exec setpriv --reuid=postgres --regid=postgres --init-groups -- env HOME=/var/lib/postgresql "$0" "$@"
	fi
	from_file POSTGRES_PASSWORD
	from_file POSTGRES_USER postgres
	from_file POSTGRES_DB "$POSTGRES_USER"
	from_file POSTGRES_INITDB_ARGS
	if [ ! -s "$PGDATA/PG_VERSION" ]; then
		check_password
		ls /docker-entrypoint-initdb.d/ >/dev/null
		make_database
		shift
		allow_network "$@"
		export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
		# Nobody may come by network before the database is whole.
		PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -o "$(printf "'%s' " -c listen_addresses= -p "${PGPORT:-5432}" "$@")" -w start
		if [ "$(sql --dbname postgres --set db="$POSTGRES_DB" --tuples-only --no-align <<-'END'
			select 1 from pg_database where datname = :'db';
		END
		)" != 1 ]; then
			sql --dbname postgres --set db="$POSTGRES_DB" <<-'END'
				create database :"db";
			END
		fi
		PGHOST='' PGHOSTADDR='' init_files
		PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -m fast -w stop
		unset PGPASSWORD
		set -- postgres "$@"
		say "the database is made, the server starts"
	else
		say "the database is there, nothing is made"
	fi
fi
exec "$@"
