#!/usr/bin/env bash
# Submits a recipe as a Ray job that carries the package; the cluster needs the pinned requirements alone.
#
#   cluster/submit.sh sweeps/cam_geometry.py --out /mnt/mantra/runs --gpus-per-trial 0.25
#   NODES="--gpus 8" cluster/submit.sh ...      # wait for that many first (and ask the autoscaler for them)
#
# The job server answers on the head's 127.0.0.1:8265; bring it here first, with one of
#   ray dashboard cluster/aws.yaml        ssh -N -L 8265:127.0.0.1:8265 HEAD
#   kubectl port-forward service/mantra-head-svc 8265
# Watch:  ray job logs --follow ID; ray job list.   Stop:  ray job stop ID (submit again to go on).
# RAY_API_SERVER_ADDRESS names another address; the token is that of the cluster (~/.ray/auth_token, or RAY_AUTH_TOKEN).
# Needs ray[default] here too: pip install -r cluster/requirements.txt
#
# A relative --out would lie in the job's folder on the head, which vanishes with it: it is refused.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }

out=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --out) next=$((i + 1)); out=${!next-} ;;
        --out=*) out=${!i#--out=} ;;
        --address | --address=*) echo "submit.sh: the job finds the cluster itself; leave --address out" >&2; exit 2 ;;
    esac
done
[[ $out == /* ]] || { echo "submit.sh: --out must be an absolute path that all nodes share" >&2; exit 2; }

export RAY_AUTH_MODE=token
python=${PYTHON:-.venv/bin/python}
address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
# shellcheck disable=SC2086 # NODES holds several words
exec "$python" -m ray.scripts.scripts job submit --address "$address" --no-wait \
    --runtime-env cluster/runtime_env.yaml -- \
    python cluster/with_nodes.py ${NODES:-} -- python "$1" --address auto "${@:2}"
