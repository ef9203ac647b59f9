#!/usr/bin/env bash
# A song from a running server (scripts/serve, or the container) with curl and jq: examples/client.sh song.mp3
set -euo pipefail
server="${YUE_SERVER:-http://127.0.0.1:5000}"
answer="$(curl --silent --show-error --fail-with-body --json "@$(dirname "$0")/request.json" "$server/predictions")"
if [ "$(jq -r .status <<<"$answer")" != succeeded ]; then
    jq -r .error <<<"$answer" >&2
    exit 1
fi
jq -r .output <<<"$answer" | sed 's/^data:[^,]*,//' | base64 --decode >"${1:-song.mp3}"
jq .metrics <<<"$answer"
