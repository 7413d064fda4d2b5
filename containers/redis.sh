#!/bin/sh
# Starts Redis with its password, in a file because arguments are seen by every process.
set -eu
umask 077
printf 'requirepass %s\n' "$(cat /run/secrets/broker/password)" > /tmp/redis.conf
exec redis-server /tmp/redis.conf --bind 0.0.0.0 --dir /data --save '' --appendonly yes --appendfsync everysec \
    --maxmemory-policy noeviction "$@"
