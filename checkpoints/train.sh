#!/usr/bin/env bash
# Train the committed checkpoints again: one to six minutes of one core each. Every card.json names its command.
set -euo pipefail
cd "$(dirname "$0")/.."

# The recipe never overwrites a checkpoint; these are in git.
rm -rf checkpoints/nt-expressive checkpoints/nt-elliptical checkpoints/nt-dot-product checkpoints/digits-elliptical \
    checkpoints/text-expressive

attnserve train nt --symbols 8 --delay 8 --variant expressive --width 48 --mlp-ratio 2.0 --bias \
    --positions rotary --rotary-base 0.1 --window 32 --seed 1 --steps 1500 --length 512 \
    --curriculum 300 --optimizer adamw --cooldown 900 --out checkpoints/nt-expressive

attnserve train nt --symbols 8 --delay 8 --variant elliptical --width 48 --mlp-ratio 2.0 --bias \
    --positions rotary --seed 0 --steps 1500 --length 512 \
    --curriculum 300 --optimizer adamw --cooldown 900 --out checkpoints/nt-elliptical

attnserve train nt --symbols 8 --delay 8 --variant dot_product --layers 2 --width 48 --mlp-ratio 2.0 --bias \
    --positions rotary --seed 0 --steps 1500 --length 512 \
    --curriculum 300 --optimizer adamw --cooldown 900 --out checkpoints/nt-dot-product

attnserve train digits --variant elliptical --seed 0 --steps 1500 --cooldown 1000 --out checkpoints/digits-elliptical

# Reads the docstrings of the installed numpy and torch: other versions give another text.
attnserve train text --variant expressive --windows 4 16 64 --seed 0 --lr 0.006 --out checkpoints/text-expressive
