#!/bin/sh
# Makes the secrets of compose.yaml, once: docker/secrets/ and docker/.env. What is there stays.
set -eu
umask 077
cd "$(dirname "$0")"

random() {
    od -An -tx1 -N32 /dev/urandom | tr -d ' \n'
}

mkdir -p secrets
# The folder keeps others out; the files must be readable to the containers' users.
put() {
    [ -s "secrets/$1" ] || printf '%s\n' "$2" >"secrets/$1"
    chmod 0444 "secrets/$1"
}
put signing_key "$(random)"
put grafana_password "$(random)"
if [ ! -s secrets/api_keys ]; then
    key=sk-echolm-$(random)
    hash=$(printf '%s' "$key" | sha256sum | cut -d ' ' -f 1)
    put api_keys "{\"keys\": [{\"id\": \"k_first\", \"name\": \"first\", \"hash\": \"$hash\", \
\"created\": \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\"}]}"
    echo "the first API key, which is kept nowhere: $key"
fi
if [ ! -s secrets/event_log ] || [ ! -s secrets/redis.acl ]; then
    password=$(random)
    rm -f secrets/event_log secrets/redis.acl
    put event_log "redis://echolm:$password@redis:6379/0"
    put redis.acl "user echolm on >$password ~echolm:* +@all -@dangerous +info +config|get
user default on nopass -@all +ping"
fi
[ -s .env ] || printf 'MINIO_PASSWORD=%s\n' "$(random)" >.env
echo "secrets are in $PWD/secrets and $PWD/.env"
