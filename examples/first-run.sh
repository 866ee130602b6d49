#!/usr/bin/env bash
# From a model of the Hub to a smaller one there, with the record of what that cost.
#
#     hf auth login
#     bash examples/first-run.sh [MODEL]
#
# The cache is kept in f16: with the plugin's u8 one answer of this model in int8 loops as GenAI serves it.
# Short: the evaluation reads some of the text that comes with the package. Without --dataset and --num-windows it
# reads WikiText-2, 16,384 tokens of it.
set -eu
model=${1:-HuggingFaceTB/SmolLM2-135M-Instruct}
output=${model##*/}-int8-ov

# The shell shows each command before it runs.
PS4='
$ '
set -x
llmcompress compress "$model" -r int8 --set runtime.kv_cache_precision=f16
llmcompress eval "$output" --reference "$model" --dataset bundled --num-windows 8
llmcompress bench "$output" -p 256 -n 64
llmcompress chat "$output" -p "What is the capital of France?"
llmcompress card "$output"
llmcompress push "$output"
