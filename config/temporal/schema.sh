#!/bin/sh
# Brings Temporal's two databases to the schema of this version of admin-tools; what is up to date stays.
# The databases and their role are made by postgres-init. SQL_* is what temporal-sql-tool reads by itself.
set -eu

schema=/etc/temporal/schema/postgresql/v12
for pair in temporal:temporal temporal_visibility:visibility; do
    database=${pair%:*}
    # Makes the table of versions; left alone where there is a version already.
    temporal-sql-tool --db "$database" setup-schema -v 0.0
    temporal-sql-tool --db "$database" update-schema -d "$schema/${pair#*:}/versioned"
done
