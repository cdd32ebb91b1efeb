#!/bin/sh
# Puts WordPress into the folder where there is none, and a wp-config.php that
# reads WORDPRESS_* (see wp-config-docker.php), then runs the server.
set -eu

case ${1:-} in
apache2*)
	user=www-data group=www-data
	if [ "$(id -u)" != 0 ]; then
		user=$(id -u) group=$(id -g)
	fi
	if [ ! -e index.php ] && [ ! -e wp-includes/version.php ]; then
		if [ -n "$(find . -mindepth 1 -maxdepth 1 \! -name wp-content -print -quit)" ]; then
			echo "wordpress: warning: $PWD is not empty; WordPress is put beside what is there" >&2
		fi
		# What is there already (a mounted plugin, a theme) stays as it is.
		(cd /usr/src/wordpress && tar -c .) | tar -x --keep-old-files --owner="$user" --group="$group" 2>/dev/null || true
		[ -e wp-includes/version.php ] || { echo "wordpress: cannot write to $PWD" >&2; exit 1; }
		if [ "$(id -u)" = 0 ]; then
			chown "$user:$group" .
			find . \! -user "$user" -path './wp-content' -prune -o \! -user "$user" -exec chown -h "$user:$group" {} + 2>/dev/null || true
		fi
		echo "wordpress: put into $PWD"
	fi
	asked=$(env | sed -n 's/^\(WORDPRESS_[A-Z_]*\)=.*/\1/p' | head -1)
	if [ ! -s wp-config.php ] && [ -n "$asked" ]; then
		for template in wp-config-docker.php /usr/src/wordpress/wp-config-docker.php; do
			[ -s "$template" ] || continue
			# Each of the phrases becomes one of its own.
			while IFS= read -r line; do
				case $line in
				*"put your unique phrase here"*)
					phrase=$(head -c 48 /dev/urandom | sha256sum | cut -d' ' -f1)
					line="${line%%put your unique phrase here*}$phrase${line#*put your unique phrase here}"
					;;
				esac
				printf '%s\n' "$line"
			done <"$template" >wp-config.php.new
			mv wp-config.php.new wp-config.php
			[ "$(id -u)" != 0 ] || chown "$user:$group" wp-config.php || true
			echo "wordpress: wp-config.php reads $asked and its like"
			break
		done
	fi
	;;
esac
exec "$@"
