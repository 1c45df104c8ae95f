#!/usr/bin/env bash
# A run on two and on three network namespaces, and on two with a slow network that loses packets, ends with the bits of one process. The command is
# built with the feature `mpi`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
attn=$here/../../target/release/attn
space=$(mktemp -d)
trap 'rm -rf "$space"' EXIT

for _ in $(seq 60); do printf 'O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n'; done > "$space/text.txt"
run=(train "$space/text.txt" --layers 1 --heads 2 --dim 48 --context 16 --batch 6 --steps 20 --eval-every 10 --threads 1)
"$attn" "${run[@]}" --out "$space/alone" > /dev/null 2>&1
for machines in "2" "3" "2 rate 100mbit loss 1%"; do
    read -ra words <<< "$machines"
    "$here/namespaces.sh" "${words[@]}" -- "$attn" "${run[@]}" --out "$space/run" > "$space/log" 2>&1 || { cat "$space/log"; exit 1; }
    cmp "$space/alone/model.safetensors" "$space/run/model.safetensors"
    echo "namespaces: $machines: the bits of one process"
    rm -r "$space/run"
done
