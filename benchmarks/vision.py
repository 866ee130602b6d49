"""Vision-language models that were really run: a table for the documentation.

A tiny model of each type is made with its processor and fitted to definite answers about three pictures, loaded and
compressed to int8 and int4 by llmcompress and by stock Optimum in the same environment: the weights of every part are
compared, byte by byte. Stock Optimum opens the uncompressed output, whose logits of a text and of a question with a
picture are compared with torch's in f32, and the tokens that both generate. Stock Optimum and OpenVINO GenAI answer
from the int8 directory, token by token against the original's answers in torch, and what the answers lost is measured
as by `llmcompress eval`. At last the language model is taken out alone, of a random model, where the exporter takes its
type: the bytes at int4 against stock Optimum's of a text checkpoint saved by transformers, its logits against torch's.

Where a type's class is code of its repository, a stand-in of our own takes its place (`vision_stand_ins.py`).

Each type has a process of its own, on the layer that llmcompress takes for it. What is done is kept in RESULTS.

With --speed a Llava of 1.0 B parameters is generated (bf16) and compressed to int4 and int8 by the command lines of
both, whole processes in turn: wall time, peak memory and bytes written, and whether the weights of all parts are equal.

    python benchmarks/vision.py --results vision.json --page docs/vision.md
    python benchmarks/vision.py --speed --runs 3 --page docs/vision.md
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import compress as commands
from architectures import MAX_ERROR, MAX_RECURRENT_ERROR, in_child, last_words, put_table, run_types
from vision_answers import Asked, equal_tokens, said_by, said_by_genai
from vision_checkpoints import asked_of, is_stand_in, make_checkpoint, make_random, opened

from llmcompress.loaders.architecture import VISION_TYPES
from llmcompress.loaders.environments import fitting_layer
from llmcompress.loaders.exporter import VISION_TASK, declared_windows, installed_transformers
from llmcompress.loaders.layer_folders import install

OPTIONS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "sym": False},
    "int4": {"bits": 4, "sym": False, "group_size": 32, "ratio": 1.0, "group_size_fallback": "adjust"},
}
OVERRIDES = {"int8": [], "int4": ["weights.group_size=32", "weights.group_size_fallback=adjust"]}
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
NEW_TOKENS = 8


def errors_of(checkpoint: Path, output: Path, asked: Asked) -> dict[str, Any]:
    """The largest differences of logits to torch's, and whether both generate the same tokens of a picture."""
    import numpy as np
    import torch

    module, model = opened(checkpoint), opened_by_optimum(output, ov_config=F32)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 256, (1, 24)))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    how = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        errors = {"text": float((model(**text).logits - module(**text).logits).abs().max())}
        theirs, ours = (each.generate(**asked.inputs, **how) for each in (module, model))
        # Those of the tokens that were generated: Optimum places them only there.
        errors["picture"] = _largest(theirs.logits, ours.logits)
        found: dict[str, Any] = {"errors": errors, "tokens": bool(torch.equal(theirs.sequences, ours.sequences))}
        if errors["picture"] > MAX_ERROR:
            stock = opened_by_optimum(checkpoint, export=True, load_in_8bit=False, ov_config=F32)
            found["from stock"] = _largest(stock.generate(**asked.inputs, **how).logits, ours.logits)
    return found


def opened_by_optimum(directory: Path, **how: Any) -> Any:
    """A directory in stock Optimum's class."""
    from optimum.intel import OVModelForVisualCausalLM

    return OVModelForVisualCausalLM.from_pretrained(directory, trust_remote_code=is_stand_in(directory), **how)


def _largest(expected: Any, found: Any) -> float:
    """The largest difference of the logits of generated tokens."""
    return max(float((one - other).abs().max()) for one, other in zip(expected, found, strict=False))


def lost(candidate: Any, original: Any) -> float:
    """KL divergence of the original's answers to two of the bundled questions about pictures, in exact arithmetic."""
    from llmcompress.data.pictures import read_pictures
    from llmcompress.evaluation.pictures import Looking, look
    from llmcompress.graph.device import properties_of

    asked = read_pictures("bundled")
    how = Looking(asked._replace(questions=asked.questions[:2]), "CPU", properties_of("CPU", "pinned"), 0.95)
    found = look(candidate, original, how, lambda progress: None).record
    assert found is not None
    assert found.divergence is not None
    return found.divergence.kl_divergence.value


def measure_alone(model_type: str) -> dict[str, Any]:
    """The language model as a text model: the error of its logits, and whether its bytes at int4 are stock's."""
    with tempfile.TemporaryDirectory() as folder:
        return _alone(make_random(model_type, Path(folder) / "checkpoint"), Path(folder))


def _alone(checkpoint: Path, work: Path) -> dict[str, Any]:
    import numpy as np
    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from vision_fixture import text_checkpoint

    import llmcompress
    from llmcompress.errors import ModelError

    try:
        loaded = llmcompress.load(checkpoint, text_only=True, trust_remote_code=is_stand_in(checkpoint))
    except ModelError as error:
        return {"refused": error.message}
    llmcompress.compress(loaded, "none", work / "text-none")
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 256, (1, 24)))
    module = opened(checkpoint)
    model = OVModelForCausalLM.from_pretrained(work / "text-none", ov_config=F32)
    with torch.no_grad():
        error = float((model(ids, attention_mask=torch.ones_like(ids)).logits - module(ids).logits).abs().max())
    llmcompress.compress(loaded, llmcompress.load_recipe("int4", OVERRIDES["int4"]), work / "text")
    OVModelForCausalLM.from_pretrained(
        text_checkpoint(checkpoint, work / "text-checkpoint"),
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(**OPTIONS["int4"]),
    ).save_pretrained(work / "text-stock")
    same = filecmp.cmp(work / "text" / "openvino_model.bin", work / "text-stock" / "openvino_model.bin", shallow=False)
    return {"type": loaded.config["model_type"], "error": error, "same": same}


def answers_of(checkpoint: Path, work: Path, asked: list[Asked]) -> dict[str, Any]:
    """How many tokens of the original's answers the int8 directory says, in stock Optimum's class and in GenAI."""
    expected = said_by(opened(checkpoint), asked)
    found: dict[str, Any] = {
        "total": sum(map(len, expected)),
        "answers": len({tuple(each) for each in expected}),
        "optimum": equal_tokens(said_by(opened_by_optimum(work / "int8"), asked), expected),
    }
    try:
        found["genai"] = equal_tokens(said_by_genai(work / "int8", asked), expected)
        if found["genai"] < found["total"]:
            # Whether int8 is the reason, or what we wrote. Stock's class saves no tokenizer and no processor.
            for file in (work / "int8").glob("*"):
                if not (work / "stock-int8" / file.name).exists():
                    shutil.copy(file, work / "stock-int8")
            others = ("stock-int8", "none")
            found |= {name: equal_tokens(said_by_genai(work / name, asked), expected) for name in others}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        found["genai"] = last_words(error)
    return found


def measure(model_type: str) -> dict[str, Any]:
    """Do all of it for one type, in this process."""
    from optimum.intel import OVWeightQuantizationConfig

    import llmcompress

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = make_checkpoint(model_type, work / "checkpoint")
        asked, trusted = asked_of(checkpoint), is_stand_in(checkpoint)
        loaded = llmcompress.load(checkpoint, trust_remote_code=trusted)
        found: dict[str, Any] = {"state": "run", "stand_in": trusted, "parts": [loaded.part, *loaded.parts]}
        llmcompress.compress(loaded, "none", work / "none")
        found |= errors_of(checkpoint, work / "none", asked[0])
        for name, options in OPTIONS.items():
            llmcompress.compress(loaded, llmcompress.load_recipe(name, OVERRIDES[name]), work / name)
            config = OVWeightQuantizationConfig(**options)
            stock = opened_by_optimum(checkpoint, export=True, compile=False, quantization_config=config)
            stock.save_pretrained(work / f"stock-{name}")
            files = [f"openvino_{part}.bin" for part in found["parts"]]
            same = filecmp.cmpfiles(work / name, work / f"stock-{name}", files, shallow=False)[0]
            found[name] = sorted(set(files) - set(same))
        found["answers"] = answers_of(checkpoint, work, asked)
        made = llmcompress.load(work / "int8", tokenizer=False, trust_remote_code=trusted)
        found["lost"] = lost(made, loaded)
        config = json.loads((checkpoint / "config.json").read_text())
        found["text_type"] = config.get("text_config", {}).get("model_type", "")
        return {**found, "seconds": round(time.perf_counter() - started, 1)}


def run_apart(model_type: str) -> dict[str, Any]:
    """Measure one type in a process of its own, on its layer."""
    layer = fitting_layer(model_type, VISION_TASK)
    version = layer.version if layer else installed_transformers()
    first = [str(install(layer.requirements))] if layer else []
    found = {"transformers": version} | in_child(Path(__file__), model_type, first, [])
    text = fitting_layer(found.get("text_type", ""))
    first = [str(install(text.requirements))] if text else []
    return found | {"alone": in_child(Path(__file__), model_type, first, ["--alone"])}


def page(results: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of the table in Markdown."""
    lines = [
        "| type | transformers | parts | int8 | int4 | logits of text | with a picture | tokens | "
        "tokens at int8: Optimum | GenAI | answers at int8 | language model alone |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in sorted(results.items()):
        version = found["transformers"] + (", stand-in" if found.get("stand_in") else "")
        if found["state"] != "run":
            lines.append(f"| {name} | {version} | {found['reason'].replace('|', '/')} | | | | | | | | | |")
            continue
        bound = MAX_RECURRENT_ERROR if name.startswith("qwen3_5") else MAX_ERROR
        logits = [f"{'equal' if error <= bound else 'DIFFER'}, {error:.0e}" for error in found["errors"].values()]
        if "from stock" in found:
            logits[1] += f"; from stock's {found['from stock']:.0e}"
        same = ["equal" if not found[bits] else f"differ: {', '.join(found[bits])}" for bits in OPTIONS]
        parts = ", ".join(part.removesuffix("_model") for part in found["parts"])
        cells = [name, version, parts, *same, *logits, "equal" if found["tokens"] else "differ"]
        cells += [*_answers_text(found["answers"]), f"{found['lost']:.1e} nats", _alone_text(found["alone"], bound)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _answers_text(found: dict[str, Any]) -> list[str]:
    """How many tokens of the original's answers stock Optimum's class and GenAI say."""
    total, genai = found["total"], found["genai"]
    if isinstance(genai, str):
        return [f"{found['optimum']} of {total}", genai.replace("|", "/")]
    text = f"{genai} of {total}"
    if genai < total:
        text += f"; of stock's directory {found['stock-int8']}, uncompressed {found['none']}"
    return [f"{found['optimum']} of {total}", text]


def _alone_text(found: dict[str, Any], bound: float) -> str:
    if "refused" in found or "reason" in found:
        return "refused by name" if "refused" in found else str(found["reason"]).replace("|", "/")
    logits = f"logits {'equal' if found['error'] <= bound else 'DIFFER'}, {found['error']:.0e}"
    return f"{found['type']}: int4 {'equal' if found['same'] else 'differs'}, {logits}"


def write_page(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Put the table and its counts between the marks of a page."""
    windows = declared_windows(VISION_TASK)
    run = [found for found in results.values() if found["state"] == "run"]
    stand_ins = sum(bool(found.get("stand_in")) for found in run)
    text = (
        f"Of the exporter's {len(windows)} types {len(run) - stand_ins} were run with transformers' own class, and "
        f"{stand_ins} whose class is code of their repositories with a stand-in; all others are refused by name."
    )
    put_table(path, text, page(results))


def generate_llava(directory: Path, *, layers: int = 14, vision_layers: int = 20) -> Path:
    """Write a Llava of a real shape with random bf16 weights: 1.0 B parameters, of which 0.25 B see."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
    from tiny_models import write_tokenizer
    from vision_fixture import CONFIGS, TEXT, TOKENS, make_processor, template

    text = {
        **TEXT,
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 4096,
    }
    seen = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
    sizes = {"text_config": text, "vision_config": seen, "image_seq_length": 576}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llava", **{**CONFIGS["llava"], **sizes})
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    processor = make_processor(
        "llava", write_tokenizer(directory, chat_template=template("llava"), named=TOKENS["llava"])
    )
    processor.image_processor.size, processor.image_processor.crop_size = (
        {"shortest_edge": 336},
        dict.fromkeys(("height", "width"), 336),
    )
    processor.chat_template = template("llava")
    processor.save_pretrained(directory)
    return directory


def compare_speed(recipe: str, checkpoint: Path, work: Path, runs: int) -> dict[str, Any]:
    """One recipe by both command lines in turn."""
    ours, theirs = commands.RECIPES[recipe]
    mine, other, pairs = work / "ours", work / "optimum", []
    for _ in range(runs):
        command = [
            str(commands.BIN / "llmcompress"),
            "compress",
            str(checkpoint),
            *ours,
            "--no-graph-cache",
            "-o",
            str(mine),
        ]
        stock = [str(commands.BIN / "optimum-cli"), "export", "openvino", "-m", str(checkpoint)]
        stock += ["--task", "image-text-to-text", *theirs, str(other)]
        pairs.append((commands.measure(command, work / "ours.log"), commands.measure(stock, work / "optimum.log")))
        files = sorted(path.name for path in mine.glob("openvino_*_model.bin"))
        equal = filecmp.cmpfiles(mine, other, files, shallow=False)[0] == files
        written = sum(path.stat().st_size for path in mine.iterdir())
        shutil.rmtree(mine)
        shutil.rmtree(other)
    return {"recipe": recipe, "equal": equal, "output_bytes": written, **commands.summarise(pairs)}


def speed(runs: int) -> tuple[str, list[str]]:
    """What both took, as a line of the machine and a table."""
    results, loads = [], [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = generate_llava(work / "checkpoint")
        size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        for recipe in ("int4", "int8"):
            results.append(compare_speed(recipe, checkpoint, work, runs))
            loads.append(os.getloadavg()[0])
            print(json.dumps(results[-1]), flush=True)
    lines = [
        "| recipe | wall time | | ratio | peak memory | | ratio | written | | output | bytes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in results:
        cells = [found["recipe"]]
        for field, unit, scale in (("wall_s", "s", 1), ("peak_rss_bytes", "GB", 1e9), ("written_bytes", "GB", 1e9)):
            figure = found[field]
            cells += [f"{figure[side] / scale:.3g} {unit}" for side in ("ours", "the other")]
            cells += [f"{figure['ratio']:.2f}"] if field != "written_bytes" else []
        cells += [f"{found['output_bytes'] / 1e9:.2f} GB", "equal" if found["equal"] else "DIFFER"]
        lines.append(f"| {' | '.join(cells)} |")
    load = f"load of the machine {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    often = "one run of each" if runs == 1 else f"{runs} runs of each, medians"
    sides = f"`llmcompress` first, then `optimum-cli`; {often}"
    return f"A checkpoint of {size / 1e9:.2f} GB; {sides}; {load}.", lines


def main() -> None:
    """Run what is not done yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="only these; what is kept of them is measured again")
    parser.add_argument("--results", type=Path, default=Path("vision.json"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--speed", action="store_true", help="time and memory of both command lines instead")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.speed:
        text, table = speed(args.runs)
        if args.page is None:
            print("\n".join([text, "", *table]))
        else:
            put_table(args.page, text, table, mark="speed")
        return
    if args.child:
        args.results.write_text(json.dumps((measure_alone if args.alone else measure)(args.types[0])))
        return
    results = run_types(args, sorted(VISION_TYPES), run_apart)
    if args.page is not None:
        write_page(results, args.page)


if __name__ == "__main__":
    main()
