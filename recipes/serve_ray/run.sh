#!/usr/bin/env bash
# The voice service on Ray Serve; README.md beside this tells how it scales and ends.
#   recipes/serve_ray/run.sh                 serve.yaml
#   recipes/serve_ray/run.sh FILE.yaml       another fleet
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec serve run "${1:-recipes/serve_ray/serve.yaml}"
