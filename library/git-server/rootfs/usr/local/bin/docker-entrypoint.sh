#!/bin/bash
# Serves the bare repositories of /srv/git: http://HOST/NAME.git for everybody
# to read, ssh://git@HOST/srv/git/NAME.git (or git@HOST:NAME.git) for those whose
# keys are known.
#
#   GIT_REPOSITORIES           names, separated by blanks: made where they are not there
#   GIT_AUTHORIZED_KEYS        keys for SSH, one a line; also /etc/git-server/authorized_keys,
#                              and /srv/git/.ssh/authorized_keys
#   GIT_HTTP_USER, _PASSWORD   who may push over HTTP; without, nobody
#   GIT_HTTP_PRIVATE=1         reading over HTTP needs the password, too
#
# _PASSWORD and _KEYS may be given as files: GIT_HTTP_PASSWORD_FILE, …
set -eu

if [ "${1:-git-server}" != git-server ]; then
	exec "$@"
fi

fail() {
	echo "git-server: $*" >&2
	exit 1
}

for name in GIT_HTTP_PASSWORD GIT_AUTHORIZED_KEYS; do
	from=${name}_FILE
	if [ -n "${!from:-}" ]; then
		[ -r "${!from}" ] || fail "$from: cannot read ${!from}"
		declare "$name=$(<"${!from}")"
	fi
done

run=/var/lib/git-server
rm -rf "${run:?}"/*

for name in ${GIT_REPOSITORIES:-}; do
	name=${name%.git}
	[[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$ ]] || fail "GIT_REPOSITORIES: \"$name\" is not a repository's name"
	if [ ! -e "/srv/git/$name.git" ]; then
		git init -q --bare -b main "/srv/git/$name.git"
	fi
done
for script in /docker-entrypoint-init.d/*.sh; do
	if [ -r "$script" ]; then
		. "$script"
	fi
done

# The server's own keys stay with the repositories: clients remember them.
mkdir -p -m 700 /srv/git/.ssh
for type in ed25519 rsa; do
	key=/srv/git/.ssh/host_$type
	[ -e "$key" ] || ssh-keygen -q -t "$type" -N '' -C git-server -f "$key"
done
printf '%s\n' "${GIT_AUTHORIZED_KEYS:-}" >"$run/authorized_keys"

realm=off
[ -z "${GIT_HTTP_PRIVATE:-}" ] || realm=git
if [ -n "${GIT_HTTP_USER:-}" ]; then
	[ -n "${GIT_HTTP_PASSWORD:-}" ] || fail "GIT_HTTP_USER needs GIT_HTTP_PASSWORD"
	[[ $GIT_HTTP_USER != *:* ]] || fail "GIT_HTTP_USER must not have a colon"
	salt=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
	hash=$(PASSWORD=$GIT_HTTP_PASSWORD SALT=${salt:0:16} perl -e 'print crypt($ENV{PASSWORD}, "\$6\$$ENV{SALT}\$")')
	printf '%s:%s\n' "$GIT_HTTP_USER" "$hash" >"$run/users"
else
	: >"$run/users"
fi
printf 'map "$arg_service$uri" $realm {\n\tdefault %s;\n\t~git-receive-pack git;\n}\n' "$realm" >"$run/realm.conf"
unset GIT_HTTP_PASSWORD GIT_AUTHORIZED_KEYS

/usr/sbin/sshd -D -e -f /etc/git-server/sshd_config &
fcgiwrap -f -c 8 -s "unix:$run/cgi" &
nginx -c /etc/git-server/nginx.conf -e stderr &

# One that ends ends all.
code=0
trap 'code=143' TERM INT QUIT
wait -n || [ "$code" = 143 ] || code=1
trap '' TERM
kill -TERM $(jobs -p) 2>/dev/null || true
wait || true
[ "$code" = 143 ] && exit 0
echo "git-server: a server of it has ended" >&2
exit 1
