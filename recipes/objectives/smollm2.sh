#!/usr/bin/env bash
# SmolLM2-135M gone on with by several objectives, short: 200,000 tokens of the standard library each. What was held out
# is measured before and after, and a small draft head is trained before each, which stands still. Half an hour of a
# core each; every stage resumes after a kill, and what is done is left alone.
#   recipes/objectives/smollm2.sh                            all
#   SEED=1 recipes/objectives/smollm2.sh smollm2_registers   one
set -euo pipefail
cd "$(dirname "$0")/../.."
study="${STUDY:-runs/objectives/smollm2}" seed="${SEED:-0}"
names=("$@")
[ $# -gt 0 ] || names=(before smollm2 smollm2_registers smollm2_token_order)

train() { speech-mtp train "recipes/objectives/$1.yaml" "run.documents=$study/documents" "run.loop.seed=$seed" "${@:2}"; }

[ -f "$study/documents/manifest.json" ] || speech-mtp train recipes/objectives/smollm2_documents.yaml "run.out=$study/documents"
for name in "${names[@]}"; do
    out="$study/$name/$seed" trunk="$study/$name/$seed/export"
    [ "$name" != before ] || trunk=packaged
    mkdir -p "$out"
    [ "$name" = before ] || [ -f "$out/text.json" ] || train "$name" "run.out=$out" "run.task.seed=$seed"
    [ -f "$out/text.json" ] || speech-mtp eval text "$trunk" --limit "${DOCUMENTS:-8}" --json "$out/text.json"
    [ -d "$out/probe/export" ] || train probe "run.out=$out/probe" "run.model=$trunk" run.task.batch=2
    [ -f "$out/probe.json" ] || speech-mtp eval completion "$trunk" --functions "${FUNCTIONS:-60}" \
        --head "$out/probe/export/head" --rule chain --json "$out/probe.json"
done
