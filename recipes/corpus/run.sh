#!/usr/bin/env bash
# Text, then speech, then the report runs/corpus/report.json. Stop it at any time; run it again to go on.
#   recipes/corpus/run.sh [key=value ...]               new self-written text, e.g. workers=8 write.texts=40000
#   CONFIG=recipes/corpus/tiny_en.yaml recipes/corpus/run.sh    the text of the first shipped model
set -euo pipefail
cd "$(dirname "$0")/../.."
speech-mtp corpus "${CONFIG:-recipes/corpus/config.yaml}" "$@"
