#!/usr/bin/env bash
# Text, then speech, then the report runs/corpus/report.json. Stop it at any time; run it again to go on.
#   recipes/corpus/run.sh [key=value ...]      e.g. workers=8 write.texts=40000
set -euo pipefail
cd "$(dirname "$0")/../.."
speech-mtp corpus recipes/corpus/config.yaml "$@"
