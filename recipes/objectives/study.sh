#!/usr/bin/env bash
# Objectives and curricula on equal terms: the same trunk, text and steps for each, three seeds; what each gives goes to
# runs/objectives/study/<name>/<seed>, the table to runs/objectives/study/table.json. Every stage resumes after a kill,
# and what is done is left alone. About ten core-hours.
#   recipes/objectives/study.sh                        all
#   SEEDS="0" recipes/objectives/study.sh token_order prophet       some
#   COMPILE=true recipes/objectives/study.sh                        a whole study, in less time; needs a C++ compiler
set -euo pipefail
cd "$(dirname "$0")/../.."
study="${STUDY:-runs/objectives/study}"
functions="${FUNCTIONS:-300}"
documents="${DOCUMENTS:-24}" # held-out ones that the loss is measured on, of 61
names=("$@")
[ $# -gt 0 ] || names=(trunk parallel_heads parallel_heads_forward parallel_heads_reverse
    parallel_heads_drawn token_order registers
    registers_forward prophet joint_leap joint_deepseek distill trunk_more concept trunk_own)

train() { speech-mtp train "recipes/objectives/$1.yaml" "run.documents=$study/documents" "${@:2}"; }
complete() { speech-mtp eval completion "$1" --json "$2" --functions "$functions" "${@:3}"; }

compile="${COMPILE:-false}" # a compiled trunk rounds otherwise, and its times are others
case "$compile" in true | false) ;; *) echo "COMPILE is $compile; give true or false." >&2 && exit 1 ;; esac
if [ -d "$study" ] && compgen -G "$study/*/[0-9]*/text.json" >/dev/null; then
    before="$(cat "$study/compile" 2>/dev/null || echo false)"
    if [ "$before" != "$compile" ]; then
        echo "$study was begun with COMPILE=$before; go on so, or begin another study (STUDY=...)." >&2
        exit 1
    fi
fi
[ -f "$study/documents/manifest.json" ] || speech-mtp train recipes/objectives/documents.yaml "run.out=$study/documents"
for seed in ${SEEDS:-0 1 2}; do
    for name in "${names[@]}"; do
        out="$study/$name/$seed"
        more=("run.out=$out" "run.loop.seed=$seed" "run.task.seed=$seed" "run.task.compile=$compile")
        case "$name" in
        distill)
            [ -d "$study/teacher/export" ] || train teacher "run.out=$study/teacher" "run.task.compile=$compile"
            more+=("run.objective.teacher=$study/teacher/export")
            ;;
        trunk_more | concept | trunk_own) more+=("run.model=$study/trunk/$seed/export") ;;
        esac
        if [ "$name" = trunk_own ] && [ ! -d "$out/export" ]; then
            own="$study/own/$seed"
            train continuations "run.out=$own" "run.model=$study/trunk/$seed/export" "run.write.seed=$seed"
            speech-mtp train recipes/objectives/documents.yaml "run.out=$own/documents" \
                "run.sources={own: {name: selfwritten, paths: [$own/continuations.jsonl]}}"
        fi
        # A trunk that is gone on with reads other rows than before.
        case "$name" in trunk_more | concept | trunk_own) more+=("run.task.seed=$((seed + 100))") ;; esac
        case "$name" in trunk_own) more+=("run.documents=$study/own/$seed/documents") ;; esac
        # A run that was cut off goes on; one that is done writes its export again.
        [ -f "$out/text.json" ] || train "$name" "${more[@]}"
        echo "$compile" >"$study/compile"
        [ -f "$out/text.json" ] || speech-mtp eval text "$out/export" --json "$out/text.json" --limit "$documents"
        [ -f "$out/completion.json" ] || complete "$out/export" "$out/completion.json"
        if [ -d "$out/export/head" ] && [ ! -f "$out/drafts.json" ]; then
            rule=chain
            [ "$name" = joint_leap ] && rule=leap
            complete "$out/export" "$out/drafts.json" --head "$out/export/head" --rule "$rule"
        fi
        if [ ! -f "$out/probe.json" ]; then
            train probe "run.out=$out/probe" "run.model=$out/export" "run.loop.seed=$seed"
            complete "$out/probe/export" "$out/probe.json" --head "$out/probe/export/head" --rule chain
        fi
    done
done
speech-mtp eval objectives "$study" --json "$study/table.json" --plot "$study/curves.png"
