#!/usr/bin/env bash
# What makes codes good for a language model: codecs of one size, on the same audio for the same steps; then talkers of
# one size on the codes of each, on the same text for the same steps; then a draft head before each talker. Everything in
# runs/tokenizer_study/<codec>; what is done is left alone, what was cut off goes on. About twenty core-hours, after the
# audio (recipes/tokenizer/speak.yaml).
# semi_decoupled and mimi learn from a recogniser, which hears the audio first.
#   recipes/tokenizer_study/run.sh                                    all codecs, groups of 5 frames, one seed
#   GROUPS_OF="1 2 5" SEEDS="0 1" recipes/tokenizer_study/run.sh coupled decoupled2
#   PER_VOICE=25 RECORDINGS=40 OPINIONS=40 recipes/tokenizer_study/run.sh mimi
# The last: recordings of each voice, how many of all have opinions, and how many sentences of a talker; all the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
study="${STUDY:-runs/tokenizer_study}"
data="${DATA:-[runs/spoken]}"
dev="${DEV:-runs/store}" # recordings that no codec was trained on, as a store
names=("$@")
[ $# -gt 0 ] || names=(coupled coupled_four coupled_one semi_decoupled semi_decoupled_phonemes
    encodec mimi decoupled decoupled2)

recipe() { speech-mtp train "recipes/tokenizer_study/$1.yaml" "${@:2}"; }

for name in "${names[@]}"; do
    out="$study/$name"
    more=()
    case "$name" in semi_decoupled | mimi) more=("run.features=$study/features") ;; esac
    if [ ! -d "$out/codec/export" ]; then
        [ ${#more[@]} -eq 0 ] || speech-mtp train recipes/tokenizer/features.yaml "run.data=$data" "run.out=$study/features"
        recipe "$name" "run.out=$out/codec" "run.data=$data" "${more[@]}"
    fi
    [ -f "$out/codec.json" ] || speech-mtp eval codec --codec "$out/codec/export" --corpus "$dev" \
        --per-voice "${PER_VOICE:-50}" --opinions "${RECORDINGS:-120}" --json "$out/codec.json"
    # One aligner for all, so that talkers differ by their codes alone.
    [ -f "$out/codes/codes.safetensors" ] || speech-mtp train recipes/tiny_en/encode.yaml "run.data=$data" \
        "run.codec=$out/codec/export" "run.out=$out/codes" run.aligner=tiny-en
    # Texts and phonemes are the same for all.
    [ -f "$study/units/index.json" ] || speech-mtp train recipes/tiny_en/units.yaml "run.codes=[$out/codes]" \
        "run.out=$study/units"
    for seed in ${SEEDS:-0}; do
        for group in ${GROUPS_OF:-5}; do
            recipes/tokenizer_study/talker.sh "$out/g$group/$seed" "$out/codes" "$study/units" "$out/codec/export" \
                "$group" "$seed"
        done
    done
done
speech-mtp eval tokenizers "$study" --json "$study/table.json" --plot "$study/bars.png"
