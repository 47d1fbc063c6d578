#!/bin/sh
# What the public image's entry point does, as far as a try-out needs it: on an empty PGDATA it makes a cluster with
# POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB, then it becomes the server.
set -eu

if [ "${1:-}" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=${POSTGRES_USER:-postgres}
  database=${POSTGRES_DB:-$user}
  secret=$(mktemp)
  printf '%s\n' "${POSTGRES_PASSWORD:?is not set, and a server without a password is not started}" >"$secret"
  initdb --pgdata="$PGDATA" --username="$user" --pwfile="$secret" --auth-local=trust --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  rm "$secret"
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
  if [ "$database" != postgres ]; then
    # Without a server: the single-user mode is over in a moment and nobody can connect too early.
    printf 'CREATE DATABASE "%s";\n' "$database" | postgres --single -D "$PGDATA" postgres >/dev/null
  fi
fi
exec "$@"
