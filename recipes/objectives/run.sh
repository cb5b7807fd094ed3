#!/usr/bin/env bash
# The standard library as tokens -> a trunk from nothing in runs/objectives/<recipe>/export -> bits a byte on what was held
# out. Every stage resumes after a kill.
#   recipes/objectives/run.sh [trunk_cuda] [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe="${1:-trunk}"
speech-mtp train recipes/objectives/documents.yaml
speech-mtp train "recipes/objectives/$recipe.yaml" "${@:2}"
speech-mtp eval text "runs/objectives/$recipe/export" --json "runs/objectives/$recipe/text.json"
