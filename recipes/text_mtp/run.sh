#!/usr/bin/env bash
# The backbone's own answers -> heads, one folder each in runs/text_mtp/<recipe>/export. Every stage resumes after a kill.
#   recipes/text_mtp/run.sh                                  every kind of head at once
#   recipes/text_mtp/run.sh cuda.yaml                        the same on a GPU
#   recipes/text_mtp/run.sh ablations/medusa.yaml [key=value ...]   another recipe of this folder
# ablations/lora.yaml is a second stage: it starts from what ablations/leap.yaml has trained.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe="${1:-config.yaml}"
speech-mtp train recipes/text_mtp/answers.yaml
speech-mtp train "recipes/text_mtp/$recipe" "${@:2}"
