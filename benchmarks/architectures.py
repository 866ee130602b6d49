"""Every architecture that the exporter knows, on the transformers that converts it: a table of what was really run.

A tiny random model of each type is made, loaded and compressed to int8 and int4 by llmcompress and by stock Optimum in
the same environment, whose bytes are compared. The uncompressed graph's logits are compared with torch's, of a text in
one call, in pieces and token by token (of a graph with recurrent layers: after a prompt, token by token), both in f32.
At last OpenVINO GenAI generates from the int8 directory.

Each type has a process of its own, on the layer that llmcompress takes for it, which is installed where it is not
there. What is done is kept in RESULTS, so that the same command goes on where it was interrupted; `--page` writes the
table of the documentation from it.

    python benchmarks/architectures.py --results architectures.json --page docs/architectures.md
    python benchmarks/architectures.py --results architectures.json gemma3_text mamba
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from llmcompress.loaders.environments import fitting_layer
from llmcompress.loaders.exporter import declared_windows, installed_transformers
from llmcompress.loaders.layer_folders import install

NUM_TOKENS = 40
PIECES = (13, 20, 7)
LIMIT_S = 600
MAX_ERROR = 1e-4
"""Of logits up to 3, in f32: rounding in another order. Measured: 1e-5 in most types."""
MAX_RECURRENT_ERROR = 1e-2
"""After a prompt in one call, of which the exporter's loop over tokens sums its state in f32."""

COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
    "initializer_range": 0.08,
}
_GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256, "n_inner": 96}
_MHA: dict[str, Any] = {"num_key_value_heads": 4}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "is_encoder_decoder": False,
    "is_decoder": True,
    "init_std": 0.08,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 256,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LINEAR: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_STATE: dict[str, Any] = {"state_size": 8, "expand": 2, "conv_kernel": 4}
_MLA: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
}
FIELDS: dict[str, dict[str, Any]] = {
    "afmoe": {**_EXPERTS, "head_dim": 16, "num_dense_layers": 1, "num_shared_experts": 1, "n_group": 1},
    "bart": _SEQ2SEQ,
    "bigbird_pegasus": {**_SEQ2SEQ, "attention_type": "original_full"},
    "biogpt": _MHA,
    "blenderbot": _SEQ2SEQ,
    "blenderbot-small": _SEQ2SEQ,
    "bloom": {**_GPT},
    "codegen": {**_GPT, "rotary_dim": 8},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v3": _MLA,
    "falcon": {**_MHA, "multi_query": True, "parallel_attn": True, "alibi": False, "bias": False},
    "falcon_mamba": _STATE,
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "gemma3n_text": {
        "head_dim": 16,
        "intermediate_size": [96, 96],
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 512,
        "num_kv_shared_layers": 0,
        "laurel_rank": 32,
        "activation_sparsity_pattern": [0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "gemma4_unified_text": {"head_dim": 16, "global_head_dim": 16, "num_kv_shared_layers": 0, "sliding_window": 16},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 64,
    },
    "gpt_neox": _MHA,
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gptj": {**_GPT, "rotary_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        "shared_intermediate_size": 96,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 8,
        "mamba_n_groups": 2,
        "mamba_chunk_size": 16,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {**_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        "head_dim": 16,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 64,
        "interleave_moe_layer_step": 2,
    },
    "mamba": _STATE,
    "marian": {**_SEQ2SEQ, "decoder_vocab_size": 512, "decoder_start_token_id": 258},
    "mbart": _SEQ2SEQ,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 2},
    "olmo": _MHA,
    "olmo2": _MHA,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "pegasus": _SEQ2SEQ,
    "persimmon": _MHA,
    "phi": _MHA,
    "phi3": {"original_max_position_embeddings": 256},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3": {"head_dim": 16},
    "qwen3_5_moe_text": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_5_text": _LINEAR,
    "qwen3_moe": {**_EXPERTS, "head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_next": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "init_std": 0.08, "pad_token_id": 1},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "mamba_headdim": 32,
        "num_key_value_heads": 4,
        "chunk_size": 64,
        "num_mem_blocks": 1,
    },
}
"""What the configuration of a type needs besides COMMON."""
_PART = "the language model of a multimodal one, without a causal class of its own"
OTHERS: dict[str, str] = {
    "llava-qwen2": _PART,
    "maira2": _PART,
    "muse_glimmer_text": _PART,
    "qwen3_omni_moe_talker_text": _PART,
    "qwen3_omni_moe_text": _PART,
    "qwen3_vl_text": _PART,
    "llama4": "its configuration is of a vision-language model, whose language model is llama4_text",
}
"""Types that are no causal language models by themselves."""
BY_REPOSITORY = ("deepseek_v3",)
"""Types that transformers has a class of, whose export is made for that of their repositories."""


def make_checkpoint(model_type: str, directory: Path, is_stand_in: bool) -> Any:
    """Write a random f32 checkpoint and return the torch model that transformers reads from it."""
    import torch
    from tiny_models import write_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    if is_stand_in:
        from stand_ins import __file__ as code
        from stand_ins import build

        model = build(model_type, COMMON).to(torch.float32).eval()
    else:
        config = AutoConfig.for_model(model_type, **{**COMMON, **FIELDS.get(model_type, {})})
        model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of exactly one and biases of zero would be folded out of the graph
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    if is_stand_in:
        shutil.copy(code, directory / "stand_ins.py")
    # Some classes share on reading what they do not share before.
    read = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=is_stand_in)
    return read.to(torch.float32).eval()


def stock(checkpoint: Path, output: Path, **options: Any) -> Path:
    """The weights of stock Optimum's export."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    config = OVWeightQuantizationConfig(**options)
    trusted = (checkpoint / "stand_ins.py").exists()
    OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=config, trust_remote_code=trusted
    ).save_pretrained(output)
    return output / "openvino_model.bin"


def stock_too(work: Path) -> str:
    """What stock's export of the same checkpoint comes to, and its graph on the CPU."""
    import openvino as ov

    try:
        weights = stock(work / "checkpoint", work / "stock", bits=8, sym=False)
        ov.Core().compile_model(weights.with_suffix(".xml"), "CPU")
    except Exception as error:  # noqa: BLE001 - whatever it is, it fails
        return f"stock's fails too ({type(error).__name__})"
    return "stock's does not fail"


def largest_errors(model: Any, module: Any) -> dict[str, float]:
    """The largest difference of logits to torch's, by how the text was fed."""
    import numpy as np
    import torch

    from llmcompress.graph.decoding import Decoder
    from llmcompress.graph.device import compile_model, properties_of
    from llmcompress.graph.recurrence import recurrence

    ids = np.random.default_rng(0).integers(3, 256, (2, NUM_TOKENS))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), use_cache=False).logits.numpy()
    compiled = compile_model(model, "CPU", properties_of("CPU", "pinned"))

    def error(sizes: list[int], first: int = 0) -> float:
        decoder, start, found = Decoder(compiled), 0, []
        for size in sizes:
            decoder.run(decoder.tensors(ids[:, start : start + size], start))
            found.append(decoder.request.get_tensor("logits").data.copy())
            start += size
        return float(np.abs(np.concatenate(found, axis=1)[:, first:] - expected[:, first:]).max())

    by_token = [1] * NUM_TOKENS
    if recurrence(compiled) is not None:
        half = NUM_TOKENS // 2
        return {"after a prompt": error([half, *by_token[half:]], half - 1), "token by token": error(by_token)}
    return {"whole": error([NUM_TOKENS]), "in pieces": error(list(PIECES)), "token by token": error(by_token)}


def generated(directory: Path) -> str:
    """What OpenVINO GenAI says instead of generating; empty where it generates."""
    import openvino_genai

    try:
        config = openvino_genai.GenerationConfig(max_new_tokens=4)
        openvino_genai.LLMPipeline(str(directory), "CPU").generate("The quick brown", config)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        return last_words(error)
    return ""


def last_words(error: Exception) -> str:
    """The cause in an error of the runtime's, after the places that it came through."""
    said = re.split(r"failed at \S+:\d+:|Exception from \S+:\d+:", " ".join(str(error).split()))[-1].strip()
    return said[:120] or type(error).__name__


def measure(model_type: str, is_stand_in: bool) -> dict[str, Any]:
    """Do all of it for one type, in this process."""
    import llmcompress

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        module = make_checkpoint(model_type, work / "checkpoint", is_stand_in)
        try:
            loaded = llmcompress.load(work / "checkpoint", trust_remote_code=is_stand_in)
            errors = largest_errors(loaded.clone().model, module)
        except llmcompress.LlmcompressError as error:
            return {"state": "failed", "reason": f"{error.message}; {stock_too(work)}"}
        int4 = ["weights.group_size=32", "weights.group_size_fallback=adjust"]
        pairs = {
            "int8": (llmcompress.load_recipe("int8"), {"bits": 8, "sym": False}),
            "int4": (
                llmcompress.load_recipe("int4", int4),
                {"bits": 4, "sym": False, "group_size": 32, "ratio": 1.0, "group_size_fallback": "adjust"},
            ),
        }
        found: dict[str, Any] = {"state": "run", "transformers": installed_transformers()}
        found["errors"] = errors
        bound = MAX_RECURRENT_ERROR if "after a prompt" in found["errors"] else MAX_ERROR
        found["logits"] = all(error <= bound for error in found["errors"].values())
        for name, (recipe, options) in pairs.items():
            llmcompress.compress(loaded, recipe, work / name)
            theirs = stock(work / "checkpoint", work / f"stock-{name}", **options)
            found[name] = filecmp.cmp(work / name / "openvino_model.bin", theirs, shallow=False)
        found["genai"] = generated(work / "int8")
        return {**found, "seconds": round(time.perf_counter() - started, 1)}


def has_class(place: Path, model_type: str) -> bool:
    """Whether the transformers in a folder has a causal language model of the type; without its import of seconds."""
    text = (place / "transformers/models/auto/modeling_auto.py").read_text(encoding="utf-8")
    return f'("{model_type}", ' in text.partition("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")[2].partition("\n)\n")[0]


def run_apart(model_type: str) -> dict[str, Any]:
    """Measure one type in a process of its own, on its layer."""
    window, layer = declared_windows()[model_type], fitting_layer(model_type)
    if layer is None and not window.takes(installed_transformers()):
        return {"state": "never", "reason": f"no version of transformers is {window}"}
    version = layer.version if layer else installed_transformers()
    place = install(layer.requirements) if layer else Path(str(metadata.distribution("transformers").locate_file("")))
    if model_type in OTHERS:
        return {"state": "other", "transformers": version, "reason": OTHERS[model_type]}
    options = ["--stand-in"] if model_type in BY_REPOSITORY or not has_class(place, model_type) else []
    known: dict[str, Any] = {"transformers": version} | ({"stand_in": True} if options else {})
    return known | in_child(Path(__file__), model_type, [str(place)] if layer else [], options)


def in_child(script: Path, model_type: str, first: list[str], options: list[str]) -> dict[str, Any]:
    """What a script of this folder finds of a type in a process of its own, with folders in front of its path."""
    here = Path(__file__).parent
    path = [*first, str(here.parent / "tests"), str(here), *filter(None, sys.path)]
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer, tempfile.TemporaryDirectory() as modules:
        env = {"PYTHONPATH": os.pathsep.join(path), "LLMCOMPRESS_LAYERS": "off", "HF_MODULES_CACHE": modules}
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(script), "--child", model_type, "--results", answer.name, *options],
                env={**os.environ, **env},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return {"state": "failed", "reason": f"not done after {LIMIT_S} s"}
        text = answer.read()
    if text:
        found: dict[str, Any] = json.loads(text)
        return found
    last = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("hint:")]
    return {"state": "failed", "reason": (last or [f"exit code {done.returncode}"])[-1][:300]}


def page(results: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of the table in Markdown."""
    lines = ["| type | transformers | int8 | int4 | logits | GenAI |", "|---|---|---|---|---|---|"]
    for name in sorted(declared_windows()):
        found = results.get(name, {"state": "unmeasured", "reason": "not measured"})
        layer = fitting_layer(name)
        version = found.get("transformers") or (layer.version if layer else "")
        version += ", stand-in" if found.get("stand_in") else ""
        if found["state"] != "run":
            lines.append(f"| {name} | {version} | {found['reason'].replace('|', '/')} | | | |")
            continue
        same = ["equal" if found[bits] else "differ" for bits in ("int8", "int4")]
        worst = max(found["errors"].values())
        logits = f"{'equal' if found['logits'] else 'DIFFER'}, {worst:.0e}"
        genai = "runs" if not found["genai"] else found["genai"].replace("|", "/")
        lines.append(f"| {name} | {version} | {same[0]} | {same[1]} | {logits} | {genai} |")
    return lines


def write_page(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Put the table and its counts between the marks of a page."""
    states = [found["state"] for found in results.values()]
    run = [found for found in results.values() if found["state"] == "run"]
    by_stand_in = [found for found in run if found.get("stand_in")]

    def counted(some: list[dict[str, Any]]) -> str:
        passed = sum(found["int8"] and found["int4"] and found["logits"] for found in some)
        return f"{passed} pass in everything but GenAI, which runs {sum(not found['genai'] for found in some)} of them"

    counts = (
        f"Of {len(declared_windows())} types {len(run) - len(by_stand_in)} were run with transformers' own class: "
        f"{counted([found for found in run if found not in by_stand_in])}. Of those that are code of their "
        f"repositories {len(by_stand_in)} were run with a stand-in: {counted(by_stand_in)}. {states.count('failed')} "
        f"failed, {states.count('other')} are parts of multimodal models, {states.count('never')} has no version of "
        "transformers."
    )
    put_table(path, counts, page(results))


def put_table(path: Path, counts: str, table: list[str], mark: str = "table") -> None:
    """Put a table and what is counted in it between the marks of a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    after = rest.partition("<!-- end -->")[2]
    rows = "\n".join(table)
    path.write_text(f"{before}<!-- {mark} -->\n{counts}\n\n{rows}\n<!-- end -->{after}", encoding="utf-8")


def run_types(args: argparse.Namespace, types: Iterable[str], run: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Run the types that were asked for, or of all those that are not done yet; each is kept once it is done."""
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.exists() else {}
    for name in args.types or types:
        if name in results and not args.types:
            continue
        results[name] = run(name)
        print(name, json.dumps(results[name]), flush=True)
        args.results.write_text(json.dumps(results, indent=1))
    return results


def main() -> None:
    """Run what is not done yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="only these; what is kept of them is measured again")
    parser.add_argument("--results", type=Path, default=Path("architectures.json"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stand-in", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.results.write_text(json.dumps(measure(args.types[0], args.stand_in)))
        return
    # What the installed version does not convert comes first.
    types = sorted(declared_windows(), key=lambda name: (fitting_layer(name) is None, name))
    results = run_types(args, types, run_apart)
    if args.page is not None:
        write_page(results, args.page)


if __name__ == "__main__":
    main()
