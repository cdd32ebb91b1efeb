#!/bin/sh
# Makes a database where there is none, then runs the server as mysql.
# Each variable may begin with MARIADB_ or MYSQL_, and be read from the file
# that ..._FILE names:
#
#   ROOT_PASSWORD               of root; or one of
#   RANDOM_ROOT_PASSWORD        a random one, written to the log
#   ALLOW_EMPTY_ROOT_PASSWORD   none (MYSQL_ALLOW_EMPTY_PASSWORD, MARIADB_ALLOW_EMPTY_PASSWORD)
#   ROOT_PASSWORD_HASH          as mariadb stores it
#   ROOT_HOST                   where root may come from (%)
#   DATABASE, USER, PASSWORD, PASSWORD_HASH
#   INITDB_SKIP_TZINFO          leave time zones out
#   AUTO_UPGRADE                run mariadb-upgrade on an older database
#
# /docker-entrypoint-initdb.d: *.sh runs (or is read, when it is not
# executable), *.sql, *.sql.gz, *.sql.xz and *.sql.zst go to the database.
set -eu

say() { printf '%s\n' "mariadb: $*"; }
die() { printf '%s\n' "mariadb: $*" >&2; exit 1; }

# setting NAME: $NAME becomes the value of MARIADB_NAME, MYSQL_NAME or their files.
setting() {
	value=
	for prefix in MYSQL MARIADB; do
		eval "plain=\${${prefix}_$1:-} file=\${${prefix}_$1_FILE:-}"
		[ -z "$plain" ] || [ -z "$file" ] || die "both ${prefix}_$1 and ${prefix}_$1_FILE are set: keep one"
		if [ -n "$file" ]; then
			[ -r "$file" ] || die "${prefix}_$1_FILE: cannot read $file"
			plain=$(cat "$file")
		fi
		[ -z "$plain" ] || value=$plain
	done
	eval "$1=\$value"
}

# quoted TEXT: as a string of SQL; backslashes are plain in the mode we use.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"; }
name() { printf '`%s`' "$(printf '%s' "$1" | sed 's/`/``/g')"; }

option() { # NAME ARGS...: what the server's configuration says
	key=$1
	shift
	"$@" --verbose --help 2>/dev/null | awk -v k="$key" '$1 == k && /^[^ \t]/ { sub(/^[^ ]+ +/, ""); print; exit }'
}

wanted() {
	for word; do
		case $word in
		-\? | --help | --print-defaults | -V | --version) return 1 ;;
		esac
	done
}

sql() {
	# The password of root is there from the moment the first statements ran.
	MYSQL_PWD=$root_password mariadb --protocol=socket --socket="$socket" -uroot --skip-ssl --database="${1:-}" ${1:+--comments}
}

temporary() {
	"$@" --skip-networking --default-time-zone=SYSTEM --socket="$socket" --wsrep_on=OFF --expire-logs-days=0 --skip-slave-start --loose-innodb_buffer_pool_load_at_startup=0 &
	server=$!
	n=0
	until mariadb-admin --no-defaults --protocol=socket --socket="$socket" -uroot ping >/dev/null 2>&1; do
		kill -0 "$server" 2>/dev/null || die "the server of the first start ended"
		n=$((n + 1))
		[ $n -lt 600 ] || die "the server of the first start does not answer"
		sleep 0.1
	done
}

end_temporary() {
	kill "$server"
	wait "$server" || die "the server of the first start did not end well"
}

make_database() {
	[ -n "$ROOT_PASSWORD$ROOT_PASSWORD_HASH$RANDOM_ROOT_PASSWORD$ALLOW_EMPTY_ROOT_PASSWORD$ALLOW_EMPTY_PASSWORD" ] || die "the database is not made yet and root has no password.
  Give one:          -e MARIADB_ROOT_PASSWORD=secret
  or a random one:   -e MARIADB_RANDOM_ROOT_PASSWORD=1
  or none:           -e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1"
	if [ -n "$RANDOM_ROOT_PASSWORD" ]; then
		ROOT_PASSWORD=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
		say "GENERATED ROOT PASSWORD: $ROOT_PASSWORD"
	fi
	say "make the database in $data"
	mariadb-install-db --no-defaults --datadir="$data" --rpm --auth-root-authentication-method=normal --skip-test-db --old-mode='UTF8_IS_UTF8MB3' --cross-bootstrap >/dev/null || die "mariadb-install-db failed"
	root_password=
	temporary "$@"
	if [ -z "$INITDB_SKIP_TZINFO" ]; then
		{ echo "SET @@SESSION.SQL_LOG_BIN=0;"; mariadb-tzinfo-to-sql /usr/share/zoneinfo 2>/dev/null; } | sql mysql
	fi
	root_auth="IDENTIFIED BY $(quoted "$ROOT_PASSWORD")"
	[ -z "$ROOT_PASSWORD_HASH" ] || root_auth="IDENTIFIED BY PASSWORD $(quoted "$ROOT_PASSWORD_HASH")"
	secret=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
	{
		echo "SET @@SESSION.SQL_LOG_BIN=0, @@SESSION.SQL_MODE=CONCAT(@@SESSION.SQL_MODE, ',NO_BACKSLASH_ESCAPES');"
		if [ -n "$DATABASE" ]; then
			echo "CREATE DATABASE IF NOT EXISTS $(name "$DATABASE");"
		fi
		if [ -n "$USER_" ] && [ -n "$PASSWORD$PASSWORD_HASH" ]; then
			auth="IDENTIFIED BY $(quoted "$PASSWORD")"
			[ -z "$PASSWORD_HASH" ] || auth="IDENTIFIED BY PASSWORD $(quoted "$PASSWORD_HASH")"
			echo "CREATE USER $(quoted "$USER_")@'%' $auth;"
			if [ -n "$DATABASE" ]; then
				# In a grant, _ and % stand for any characters unless escaped.
				echo "GRANT ALL ON $(name "$(printf '%s' "$DATABASE" | sed 's/_/\\_/g')").* TO $(quoted "$USER_")@'%';"
			fi
		fi
		for host in 127.0.0.1 ::1 localhost; do
			echo "CREATE USER IF NOT EXISTS healthcheck@'$host' IDENTIFIED BY $(quoted "$secret");"
		done
		if [ "${ROOT_HOST:=%}" != localhost ]; then
			echo "CREATE USER root@$(quoted "$ROOT_HOST") $root_auth;"
			echo "GRANT ALL ON *.* TO root@$(quoted "$ROOT_HOST") WITH GRANT OPTION;"
			echo "GRANT PROXY ON ''@'%' TO root@$(quoted "$ROOT_HOST") WITH GRANT OPTION;"
		fi
		# Last: the statements before run without a password.
		echo "ALTER USER root@localhost $root_auth;"
	} | sql mysql
	printf '[client]\nuser=healthcheck\npassword=%s\n' "$secret" >"$data/.my-healthcheck.cnf"
	chmod 600 "$data/.my-healthcheck.cnf"
	root_password=$ROOT_PASSWORD
	if [ -n "$ROOT_PASSWORD_HASH" ] && ls /docker-entrypoint-initdb.d/*.sql* >/dev/null 2>&1; then
		say "warning: with only the hash of root's password, files for the database cannot be loaded" >&2
	fi
	init_files
	end_temporary
	say "the database is made, the server starts"
}

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
		*.sql) say "load $file"; sql "$DATABASE" <"$file" ;;
		*.sql.gz) say "load $file"; gunzip -c "$file" | sql "$DATABASE" ;;
		*.sql.xz) say "load $file"; xzcat "$file" | sql "$DATABASE" ;;
		*.sql.zst) say "load $file"; zstd -dc "$file" | sql "$DATABASE" ;;
		*/\*) ;;
		*) say "ignore $file" ;;
		esac
	done
}

case ${1:-} in
-*) set -- mariadbd "$@" ;;
mysqld) shift; set -- mariadbd "$@" ;;
esac

if [ "${1:-}" = mariadbd ] && wanted "$@"; then
	data=$(option datadir "$@")
	data=${data%/}
	socket=$(option socket "$@")
	[ -n "$data" ] && [ -n "$socket" ] || die "the server's configuration is broken: $("$@" --verbose --help 2>&1 >/dev/null | tail -3)"
	if [ "$(id -u)" = 0 ]; then
		mkdir -p "$data" "${socket%/*}"
		find "$data" "${socket%/*}" \! -user mysql -exec chown mysql: {} +
		exec setpriv --reuid=mysql --regid=mysql --init-groups -- "$0" "$@"
	fi
	for n in ROOT_PASSWORD ROOT_PASSWORD_HASH RANDOM_ROOT_PASSWORD ALLOW_EMPTY_ROOT_PASSWORD ALLOW_EMPTY_PASSWORD ROOT_HOST DATABASE PASSWORD PASSWORD_HASH INITDB_SKIP_TZINFO AUTO_UPGRADE; do
		setting $n
	done
	outer=${USER:-}
	setting USER
	USER_=$USER USER=$outer
	if [ ! -d "$data/mysql" ]; then
		make_database "$@"
	elif [ -n "$AUTO_UPGRADE" ] && mariadb-upgrade --no-defaults --check-if-upgrade-is-needed --datadir="$data" >/dev/null 2>&1; then
		say "the database is of an older version and is upgraded"
		root_password=$ROOT_PASSWORD
		temporary "$@"
		MYSQL_PWD=$root_password mariadb-upgrade --protocol=socket --socket="$socket" -uroot
		end_temporary
	fi
	unset MARIADB_ROOT_PASSWORD MYSQL_ROOT_PASSWORD MARIADB_PASSWORD MYSQL_PASSWORD
fi
exec "$@"
