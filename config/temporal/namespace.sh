#!/bin/sh
# Makes the namespace that workers and sidecars use, once the server serves.
# TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE are what the CLI reads by itself.
set -eu

tries=0
until temporal operator cluster health >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -ge 60 ]; then
        echo "temporal-namespace: $TEMPORAL_ADDRESS does not serve" >&2
        exit 1
    fi
    sleep 1
done
if temporal operator namespace describe >/dev/null 2>&1; then
    echo "temporal-namespace: $TEMPORAL_NAMESPACE is there"
else
    temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION"
    echo "temporal-namespace: $TEMPORAL_NAMESPACE is made"
fi
