#!/bin/sh
# The default site also listens on IPv6, where the kernel has it and nobody
# changed the site.
set -eu
site=/etc/nginx/conf.d/default.conf
[ -e /proc/net/if_inet6 ] && [ -w "$site" ] || exit 0
grep -q '^    listen       80;$' "$site" && ! grep -q 'listen.*\[::\]' "$site" || exit 0
grep -q '^# Berth.s default site$' "$site" || exit 0
next=$(sed 's/^    listen       80;$/&\n    listen  [::]:80;/' "$site")
printf '%s\n' "$next" >"$site"
