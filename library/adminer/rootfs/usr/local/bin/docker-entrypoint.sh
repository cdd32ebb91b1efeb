#!/bin/sh
# Lays out what the environment asks for beside the page, then runs the server.
#
#   ADMINER_DEFAULT_SERVER  the server that the login page offers (db)
#   ADMINER_DESIGN          a folder of /usr/share/adminer/designs
#   ADMINER_PLUGINS         files of /usr/share/adminer/plugins, without .php, separated by spaces
#
# A plugin that wants arguments goes into adminer-plugins.php, mounted beside index.php.
set -eu

if [ -n "${ADMINER_DESIGN:-}" ]; then
	[ -d "/usr/share/adminer/designs/$ADMINER_DESIGN" ] || { echo "adminer: no design $ADMINER_DESIGN; there are:" $(ls /usr/share/adminer/designs) >&2; exit 1; }
	for css in "/usr/share/adminer/designs/$ADMINER_DESIGN"/adminer*.css; do
		ln -sf "$css" .
	done
fi
for plugin in ${ADMINER_PLUGINS:-}; do
	file=/usr/share/adminer/plugins/$plugin.php
	[ -e "$file" ] || { echo "adminer: no plugin $plugin in /usr/share/adminer/plugins" >&2; exit 1; }
	ln -sf "$file" adminer-plugins/
done

# A kernel without IPv6 has no [::].
if [ "$*" = "php -S [::]:8080 -t /var/www/html" ] && [ ! -e /proc/net/if_inet6 ]; then
	set -- php -S 0.0.0.0:8080 -t /var/www/html
fi
exec "$@"
