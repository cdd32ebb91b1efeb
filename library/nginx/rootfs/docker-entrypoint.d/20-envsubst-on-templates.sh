#!/bin/sh
# Files of /etc/nginx/templates that end in .template are written to
# /etc/nginx/conf.d with the variables of the environment filled in.
#
#   NGINX_ENVSUBST_TEMPLATE_DIR, NGINX_ENVSUBST_TEMPLATE_SUFFIX, NGINX_ENVSUBST_OUTPUT_DIR
#   NGINX_ENVSUBST_FILTER                  only variables whose names match
#   NGINX_ENVSUBST_STREAM_TEMPLATE_SUFFIX  templates for a stream block (.stream-template),
#   NGINX_ENVSUBST_STREAM_OUTPUT_DIR       and where they go (/etc/nginx/stream-conf.d)
set -eu

from=${NGINX_ENVSUBST_TEMPLATE_DIR:-/etc/nginx/templates}
suffix=${NGINX_ENVSUBST_TEMPLATE_SUFFIX:-.template}
to=${NGINX_ENVSUBST_OUTPUT_DIR:-/etc/nginx/conf.d}
stream_suffix=${NGINX_ENVSUBST_STREAM_TEMPLATE_SUFFIX:-.stream-template}
stream_to=${NGINX_ENVSUBST_STREAM_OUTPUT_DIR:-/etc/nginx/stream-conf.d}
filter=${NGINX_ENVSUBST_FILTER:-}

[ -d "$from" ] || exit 0
# Only variables that exist are filled in: nginx has its own of the same form.
# shellcheck disable=SC2016
names=$(awk -v filter="$filter" 'BEGIN { for (n in ENVIRON) if (n ~ /^[A-Za-z_][A-Za-z0-9_]*$/ && n ~ filter) printf "${%s} ", n }')

fill() { # FOLDER SUFFIX
	if ! [ -w "$1" ]; then
		echo "nginx: templates are left: $1 is not writable" >&2
		return 0
	fi
	find -L "$from" -type f -name "*$2" | sort | while read -r template; do
		name=${template#"$from/"}
		out=$1/${name%"$2"}
		mkdir -p "${out%/*}"
		envsubst "$names" <"$template" >"$out"
		[ -n "${NGINX_ENTRYPOINT_QUIET_LOGS:-}" ] || echo "nginx: $template -> $out"
	done
}

fill "$to" "$suffix"
if find -L "$from" -type f -name "*$stream_suffix" | grep -q .; then
	mkdir -p "$stream_to"
	fill "$stream_to" "$stream_suffix"
	grep -qs '^stream ' /etc/nginx/nginx.conf || printf 'stream {\n    include %s/*.conf;\n}\n' "$stream_to" >>/etc/nginx/nginx.conf
fi
