#!/usr/bin/env bash
# Makes databases, roles and extensions, once and again: what is there stays, passwords follow their secrets.
# Runs in the official PostgreSQL image as `postgres-init` and `lago-postgres-init`.
#
#   INIT_HOST, INIT_PORT        the server
#   INIT_ADMIN_USER             who may make databases, and the file with its password:
#   INIT_ADMIN_PASSWORD_FILE    read only if something has to be made
#   INIT_DATABASES              names from the list, separated by spaces; empty: only wait
#   INIT_WAIT_FOR               further host:port to wait for, separated by spaces
#   INIT_WITHIN                 seconds to wait in all (default 180)
set -euo pipefail

list=${INIT_LIST:-/outrigger/databases}
secrets=${INIT_SECRETS:-/run/secrets}
host=${INIT_HOST:?names the server}
port=${INIT_PORT:-5432}
deadline=$((SECONDS + ${INIT_WITHIN:-180}))
export PGHOST=$host PGPORT=$port PGCONNECT_TIMEOUT=5 PGAPPNAME=postgres-init

say() { printf 'postgres-init: %s\n' "$*"; }
refuse() { printf 'postgres-init: %s\n' "$*" >&2; exit 1; }

# Waits until the command succeeds; the rest says what is waited for.
wait_until() { # what, command…
    local what=$1 last
    shift
    until last=$("$@" 2>&1); do
        ((SECONDS < deadline)) || refuse "$what does not answer: ${last:-no connection}"
        sleep 1
    done
    say "$what answers"
}

open_port() { timeout 5 bash -c '</dev/tcp/"$0"/"$1"' "$1" "$2"; }

# Prints the password of a line of the list.
password_of() { # database, source
    local value name=${2#*:}
    case $2 in
        file:*)
            [[ -r $secrets/$name ]] || refuse "the password of database $1 is missing: make the file compose/secrets/$name"
            value=$(<"$secrets/$name")
            ;;
        env:*) value=${!name:-} ;;
        *) refuse "database $1 has the password source '$2': it is file:<secret> or env:<VARIABLE>" ;;
    esac
    [[ -n $value ]] || refuse "the password of database $1 is empty: fill in $name"
    printf '%s' "$value"
}

# What has to hold for a database, asked as its owner: it lets the owner in, has the extensions, and the owner may what it must.
is_there() { # database, owner, password, extensions, rights
    local missing
    missing=$(PGPASSWORD=$3 psql -X -q -A -t -U "$2" -d "$1" -v wanted="$4" -v rights="$5" -f - <<'SQL' 2>/dev/null
SELECT (SELECT count(*) FROM unnest(string_to_array(nullif(:'wanted', '-'), ',')) AS name
        WHERE name NOT IN (SELECT extname FROM pg_extension))
     + (SELECT count(*) FROM pg_roles
        WHERE rolname = current_user AND :'rights' = 'createdb' AND NOT (rolcreatedb OR rolsuper));
SQL
    ) && [[ $missing == 0 ]]
}

as_admin() { # database; reads SQL
    local file=${INIT_ADMIN_PASSWORD_FILE:?names the file with the password of the administrator}
    [[ -r $file ]] || refuse "the administrator's password is missing: make the file compose/secrets/${file##*/}"
    PGPASSWORD=$(<"$file") psql -X -q -v ON_ERROR_STOP=1 -v owner="$owner" -v database="$database" \
        -v rights="$rights" -U "${INIT_ADMIN_USER:-postgres}" -d "$1" -o /dev/null -f -
}

make() {
    export INIT_PASSWORD=$password
    # The statements with a password are kept out of the server's log, whoever may read it.
    as_admin postgres <<'SQL' || refuse "database $database cannot be made on $host"
\getenv password INIT_PASSWORD
SELECT set_config('log_statement', 'none', false), set_config('log_min_error_statement', 'panic', false),
       set_config('log_min_duration_statement', '-1', false)
WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
-- Two of these may run at the same time.
SELECT pg_advisory_lock(7241, 1);
SELECT format('CREATE ROLE %I', :'owner') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec
SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', :'owner', :'password') \gexec
SELECT format('ALTER ROLE %I CREATEDB', :'owner')
WHERE :'rights' = 'createdb' AND NOT (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = :'owner') \gexec
-- An administrator that is no superuser, as managed servers have it, may only give away to roles it belongs to.
SELECT format('GRANT %I TO CURRENT_USER', :'owner')
WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT pg_has_role(current_user, :'owner', 'MEMBER') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'database', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
SELECT format('ALTER DATABASE %I OWNER TO %I', :'database', :'owner')
WHERE (SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = :'database') <> :'owner' \gexec
-- Every role may enter every database unless told otherwise.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', :'database') \gexec
SQL
    unset INIT_PASSWORD
    [[ $extensions == - ]] && return
    local extension
    for extension in ${extensions//,/ }; do
        [[ $extension != pgvector ]] || refuse "the extension of pgvector is called vector, not pgvector: mend it in $list"
        # IF NOT EXISTS alone fails for the second of two at the same time.
        printf 'SELECT pg_advisory_lock(7241, 1);\nCREATE EXTENSION IF NOT EXISTS "%s";\n' "$extension" | as_admin "$database" ||
            refuse "extension $extension cannot be made in database $database: the server has to have it installed"
    done
}

wait_until "PostgreSQL at $host:$port" pg_isready -q
for other in ${INIT_WAIT_FOR:-}; do
    wait_until "$other" open_port "${other%:*}" "${other##*:}"
done

for database in ${INIT_DATABASES:-}; do
    line=$(awk -v name="$database" '$1 == name' "$list")
    [[ -n $line ]] || refuse "no line for database $database in config/postgres/databases"
    read -r _ owner source extensions rights <<<"$line"
    rights=${rights:--}
    [[ $rights == - || $rights == createdb ]] || refuse "database $database has the right '$rights' in $list: it is createdb or none"
    password=$(password_of "$database" "$source")
    if is_there "$database" "$owner" "$password" "$extensions" "$rights"; then
        say "database $database is there"
    else
        make
        # Asked again as its owner: what is reported as made can be used.
        is_there "$database" "$owner" "$password" "$extensions" "$rights" ||
            refuse "database $database was made, yet $owner is not let in: see the log of the server"
        say "database $database is made"
    fi
done
