#!/usr/bin/env bash
# A Ray of its own for one recipe on this machine, on all its GPUs; nothing that it starts can be reached from outside.
#
#   cluster/one_host.sh sweeps/cam_geometry.py --gpus-per-trial 0.25 --seeds 5
#
# Watch:  mantra status runs/cam_geometry
#         RAY_AUTH_MODE=token RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 ray status --address 127.0.0.1:6379
# Stop:   Ctrl-C, or kill -INT this script; the same command again goes on. Ray ends with the recipe.
# PYTHON, PORT, CPUS, GPUS and RAY_TMPDIR (short: sockets lie in it) change what is used.
#
# Wrong --gpus-per-trial: too large leaves GPUs idle, too small ends trials for want of GPU memory (rows `failed`).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }

python=${PYTHON:-.venv/bin/python}
address=127.0.0.1:${PORT:-6379}
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Despite its name this decides on Linux too: 0 binds every socket to 127.0.0.1, which --node-ip-address does not.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

ray() { "$python" -m ray.scripts.scripts "$@"; }
(umask 077 && ray get-auth-token --generate >/dev/null 2>&1)  # kept in ~/.ray/auth_token; Ray sets no mode itself

log=$(mktemp)
# In a session of its own, so that Ctrl-C reaches the recipe alone. Never `ray stop`: it ends every Ray of this user.
setsid "$python" -m ray.scripts.scripts start --head --block --port="${PORT:-6379}" --include-dashboard=false \
    --disable-usage-stats ${CPUS:+--num-cpus="$CPUS"} ${GPUS:+--num-gpus="$GPUS"} \
    ${RAY_TMPDIR:+--temp-dir="$RAY_TMPDIR"} >"$log" 2>&1 &
head=$!
trap 'kill -TERM $head 2>/dev/null; wait $head 2>/dev/null || true; rm -f "$log"' EXIT
trap ':' INT TERM  # the recipe gets Ctrl-C itself and says how to go on

until ray status --address "$address" >/dev/null 2>&1; do
    kill -0 $head 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 1
done
code=0
"$python" "$1" --address "$address" "${@:2}" || code=$?
exit $code
