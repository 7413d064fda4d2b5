#!/bin/sh
# Starts Postgres as the user it is run by, on a cluster that is made on the first start. The cluster appears whole or
# not at all. The superuser `postgres` exists for those in the container only; from outside `preceptor` can reach the
# database `preceptor`, with its password.
set -eu
password=$(cat /run/secrets/database/password)
cluster=$PGDATA/cluster
hashed=$(printf %s "$password" | sha256sum)

if [ ! -d "$cluster" ]; then
    rm -rf "$PGDATA/new"
    initdb --pgdata="$PGDATA/new" --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --data-checksums \
        --no-instructions >/dev/null
    printf 'local all all trust\nhost preceptor preceptor all scram-sha-256\n' > "$PGDATA/new/pg_hba.conf"
    printf '%s\n' "CREATE ROLE preceptor LOGIN PASSWORD '$password'" 'CREATE DATABASE preceptor OWNER preceptor' \
        | postgres --single -D "$PGDATA/new" postgres >/dev/null
    printf %s "$hashed" > "$PGDATA/password.sha256"
    mv "$PGDATA/new" "$cluster"
elif [ "$(cat "$PGDATA/password.sha256")" != "$hashed" ]; then
    echo "the password is new"
    echo "ALTER ROLE preceptor PASSWORD '$password'" | postgres --single -D "$cluster" postgres >/dev/null
    printf %s "$hashed" > "$PGDATA/password.sha256"
fi
exec postgres -D "$cluster" -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
