#!/usr/bin/env bash
# Objectives and curricula of speech: the small talker of recipes/tokenizer_study on the codes of one of its codecs, the
# same text and steps for each; what each gives goes to runs/objectives/speech/<codec>/<name>/g<frames of a group>/<seed>.
# About forty minutes of a core each, after that codec (recipes/tokenizer_study/run.sh decoupled2).
#   recipes/objectives/speech.sh                                          all, which are compared with next_group
#   SEEDS="0 1" OF=runs/tokenizer_study/decoupled recipes/objectives/speech.sh next_group frames_forward
set -euo pipefail
cd "$(dirname "$0")/../.."
of="${OF:-runs/tokenizer_study/decoupled2}"
study="${STUDY:-runs/objectives/speech}/$(basename "$of")"
names=("$@")
[ $# -gt 0 ] || names=(next_group frames_forward frames_reverse frames_plateau known_pairs)

# Sets `groups`, the frames of a group, and `changes` of talker.yaml.
settings_of() {
    groups="5" changes=()
    case "$1" in
    next_group) groups="5 2" ;;
    frames_forward) changes=("run.objective={name: frames, curriculum: forward}") ;;
    frames_reverse) changes=("run.objective={name: frames, curriculum: reverse}") ;;
    # A frame more when the loss, of all frames, has stood still for so long; a tenth of a nat is standing still, or the
    # last frames' time would not come.
    frames_plateau) changes=("run.objective={name: frames, curriculum: {name: forward, plateau: 150, gain: 0.1}}" \
        run.loop.evaluate_every=50) ;;
    # Two frames as an id: in parallel, one loss, and only pairs that occur in the corpus are drawn (RPG).
    known_pairs) groups="2" changes=(run.objective=codes run.model.output=known \
        "run.task.weights={control: 1.0, codes: 4.0}") ;;
    *) echo "There is no objective of speech $1; see settings_of in $0." >&2 && exit 1 ;;
    esac
}

for name in "${names[@]}"; do settings_of "$name"; done # a wrong name, before any work
if [ ! -f "$of/codec.json" ] || [ ! -d "$of/codes" ]; then
    echo "$of is no codec of a study: codec.json or codes are not there; make them by recipes/tokenizer_study/run.sh." >&2
    exit 1
fi

for name in "${names[@]}"; do
    settings_of "$name"
    mkdir -p "$study/$name"
    cp "$of/codec.json" "$study/$name/codec.json"
    for seed in ${SEEDS:-0}; do
        for group in $groups; do
            recipes/tokenizer_study/talker.sh "$study/$name/g$group/$seed" "$of/codes" "$(dirname "$of")/units" \
                "$of/codec/export" "$group" "$seed" "${changes[@]}"
        done
    done
done
base=next_group
[ -d "$study/$base" ] || base="${names[0]}"
speech-mtp eval tokenizers "$study" --base "$base" --json "$study/table.json" --plot "$study/bars.png"
