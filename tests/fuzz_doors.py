"""Where input comes into the library: a valid example of each kind, the call that reads it, and what it may say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import fuzz_caches

from llmcompress.errors import (
    ArtifactError,
    DataError,
    LlmcompressError,
    ModelError,
    RecipeError,
    ResourceError,
    SecurityError,
    UsageError,
)

RECIPE = """\
name: mine
description: four bits
weights:
  mode: int4_sym
  group_size: 64
  ratio: 0.8
  ignored_scope: {patterns: ['.*head.*']}
  awq: true
  scale_estimation: true
  advanced: {scale_estimation_params: {subset_size: 32}}
calibration: {dataset: text.txt, num_samples: 8, seq_len: 64}
runtime: {dynamic_quantization_group_size: 64}
gate: {max_kl: 0.05}
"""
PLAN = """\
models:
  - source: ./model
    name: tiny
recipes: [int8, {recipe: int4, set: {weights.group_size: 64}}]
output: out
evaluation: {dataset: text.txt, num_windows: 4, seq_len: 64}
gate: {max_kl: 0.1}
benchmark: {prompt_tokens: [8], new_tokens: [8]}
"""


class Door(NamedTuple):
    """One way in."""

    name: str
    make: Callable[[Path], None]
    """Writes a valid input into an empty folder."""
    files: tuple[str, ...]
    """Which of its files are changed."""
    call: Callable[[Path], Any]
    """Reads the folder; returns what it read, after checking that it is right."""
    says: tuple[type[LlmcompressError], ...]
    """What it may refuse with."""
    command: tuple[str, ...] = ()
    """The command line that reads the same; its working directory is the folder."""
    is_slow: bool = False
    """Takes tenths of a second."""


def _tensors(folder: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "model.a.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
        "model.b.weight": {"dtype": "F32", "shape": [4], "data_offsets": [64, 80]},
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(80)))


def _read_tensors(folder: Path) -> Any:
    from safetensors import safe_open

    from llmcompress.loaders.tensors import read_checkpoint

    found = read_checkpoint(folder)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == theirs
    return found


def _shards(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    weights = {}
    for number in (1, 2):
        file, tensor = f"model-0000{number}-of-00002.safetensors", f"model.layers.{number}.weight"
        save_file({tensor: np.ones((2, 2), np.float32)}, folder / file)
        weights[tensor] = file
    index = {"metadata": {"total_size": 32}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _read_shards(folder: Path) -> Any:
    from llmcompress.loaders.tensors import read_checkpoint

    found = read_checkpoint(folder)
    stated = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert {name: tensor.file for name, tensor in found.tensors.items()} == stated
    return found


def _by_layout(name: str) -> Callable[[Path], None]:
    """One layer as its format is published."""

    def make(folder: Path) -> None:
        import numpy as np
        import torch
        from quantized_fixture import LAYOUTS
        from safetensors.torch import save_file

        weight = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
        parts = {
            f"a.{part}": values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
            for part, values in LAYOUTS[name].make(weight)[0].items()
        }
        save_file(parts, folder / "model.safetensors", {"format": "pt"})
        _quantized_config(folder, LAYOUTS[name].settings)

    return make


def _quantized_config(folder: Path, settings: dict[str, Any]) -> None:
    config = {"model_type": "llama", "dtype": "float16", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))


QUANTIZED_BY_TOOLS = (
    "awq",
    "compressed-tensors-4",
    "compressed-tensors-fp8",
    "bitsandbytes-nf4-double",
    "bitsandbytes-fp4",
    "bitsandbytes-int8",
    "torchao-4",
    "torchao-int4",
)


def _one_weight(name: str) -> Callable[[Path], None]:
    """One layer of a checkpoint that its own tool has written."""

    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        source = Path(__file__).parent / "quantized_checkpoints" / name
        tensors = load_file(source / "model.safetensors")
        parts = {key: tensor for key, tensor in tensors.items() if ".k_proj." in key}
        save_file(parts, folder / "model.safetensors", {"format": "pt"})
        _quantized_config(folder, json.loads((source / "config.json").read_text())["quantization_config"])

    return make


def _stack(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    name = "model.layers.0.mlp.experts.down_proj"
    scales = np.full((2, 3, 4), 120, np.uint8)
    save_file(
        {f"{name}_blocks": np.zeros((2, 3, 4, 16), np.uint8), f"{name}_scales": scales}, folder / "model.safetensors"
    )
    _quantized_config(folder, {"quant_method": "mxfp4"})


def _repack(folder: Path) -> Any:
    """Of the settings any that fit the tensors are right; what comes of them has the shape that they say."""
    from llmcompress.loaders.quantized.declaration import check_quantization
    from llmcompress.loaders.quantized.packed import dequantized
    from llmcompress.loaders.quantized.source_weights import source_weights
    from llmcompress.loaders.resolving import resolve
    from llmcompress.loaders.tensors import read_checkpoint

    source = resolve(folder)
    check_quantization(source.config)
    found = source_weights(source, read_checkpoint(folder))
    weights = {} if found is None else found.repacked()
    for weight in weights.values():
        assert dequantized(weight).shape == weight.shape
    return {name: weight.shape for name, weight in weights.items()}


def _gguf(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copy(Path(__file__).parent / "gguf_models" / f"{name}.gguf", folder / "model.gguf")

    return make


def _onnx(folder: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "config.json"):
        shutil.copy(Path(__file__).parent / "onnx_models" / "genai-int4" / name, folder / name)


def _onnx_alone(folder: Path) -> None:
    for name in ("model.onnx", "config.json"):
        shutil.copy(Path(__file__).parent / "onnx_models" / "optimum-int8" / name, folder / name)


def _repack_container(folder: Path) -> Any:
    """Whatever is read of a GGUF or ONNX file has the sizes that its header gives, each within the file."""
    from llmcompress.loaders.quantized.packed import dequantized
    from llmcompress.loaders.quantized.source_weights import source_weights
    from llmcompress.loaders.resolving import resolve
    from llmcompress.loaders.source import source_checkpoint

    # The configuration and tokenizer of GGUF go to the cache, which the door may write to.
    with mock.patch.dict(os.environ, {"LLMCOMPRESS_CACHE": str(folder / "out")}):
        source = resolve(next(path for path in folder.iterdir() if path.suffix in (".gguf", ".onnx")))
        checkpoint = source_checkpoint(source)
    sizes = {name: (folder / name).stat().st_size for name in checkpoint.files}
    assert all(0 <= tensor.start < tensor.end <= sizes[tensor.file] for tensor in checkpoint.tensors.values())
    # What lies in the file with the header lies behind it.
    assert all(tensor.start or tensor.file != checkpoint.files[0] for tensor in checkpoint.tensors.values())
    found = source_weights(source, checkpoint)
    assert found is not None
    weights = found.repacked()
    for weight in weights.values():
        assert dequantized(weight).shape == weight.shape
    return {name: weight.shape for name, weight in weights.items()}


@cache
def _demo() -> Path:
    import llmcompress.cli

    return Path(llmcompress.cli.__file__).parent / "demo_checkpoint"


def _checkpoint(folder: Path) -> None:
    for path in _demo().iterdir():
        if path.suffix in (".json", ".jinja", ".safetensors"):
            shutil.copy(path, folder / path.name)


def _dry_run(folder: Path) -> Any:
    from llmcompress.cli.dry_run import forecast_source
    from llmcompress.spec import Access, load_recipe

    predicted = forecast_source(
        str(folder), load_recipe("int8"), folder / "out", Access(offline=True), "llmcompress", lambda _: None
    )
    assert predicted.num_parameters > 0
    assert 0 < predicted.size_bytes < 8 * predicted.num_parameters + 10**6
    return predicted


def _tokenizer(folder: Path) -> Any:
    from llmcompress.loaders.resolving import resolve
    from llmcompress.loaders.token_ids import num_embeddings
    from llmcompress.loaders.tokenizer import source_tokenizer
    from llmcompress.spec import Access

    source = resolve(folder, Access(offline=True))
    tokenizer = source_tokenizer(source)
    size = num_embeddings(source.config)
    assert size is None or all(0 <= token < size for token in tokenizer("a")["input_ids"])
    return tokenizer


def _recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)


def _read_recipe(folder: Path) -> Any:
    from llmcompress.spec import load_recipe
    from llmcompress.spec.files import dump_recipe

    found = load_recipe(folder / "recipe.yaml")
    (folder / "out").mkdir(exist_ok=True)
    again = folder / "out" / "again.yaml"
    again.write_text(dump_recipe(found), encoding="utf-8")
    assert load_recipe(again) == found
    return found


def _plan(folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "text.txt").write_text("A text. " * 99)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')


def _read_plan(folder: Path) -> Any:
    from llmcompress.spec.plan import load_plan

    plan = load_plan(folder / "plan.yaml")
    assert load_plan(folder / "plan.yaml") == plan
    assert plan.models
    assert plan.recipes
    return plan


def _texts(name: str) -> tuple[Callable[[Path], None], Callable[[Path], Any]]:
    rows = [{"text": f"Row {number}: «naïve» \U0001f600 text", "id": number} for number in range(20)]

    def make(folder: Path) -> None:
        if name.endswith(".txt"):
            (folder / name).write_text("\n\n".join(str(row["text"]) for row in rows), encoding="utf-8")
        elif name.endswith(".jsonl"):
            lines = (json.dumps(row, ensure_ascii=row["id"] == 3) for row in rows)
            (folder / name).write_text("\n".join(lines), encoding="utf-8")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), folder / name)

    def read(folder: Path) -> Any:
        from llmcompress.data.texts import read_texts

        found = list(read_texts(folder / name))
        assert found
        assert all(text.encode() is not None for text in found)
        return found

    return make, read


def _pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    points = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    for name in ("0.png", "1.jpg"):
        Image.fromarray(points).save(folder / name)
    rows = [{"image": name, "text": "What is it?"} for name in ("0.png", "1.jpg")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def _read_pictures(folder: Path) -> Any:
    from llmcompress.data.picture_pairs import picture_pairs
    from llmcompress.spec import Calibration

    calibration = Calibration(dataset=str(folder / "rows.jsonl"), image_field="image")
    found = list(picture_pairs(calibration, offline=True))
    assert found
    assert all(pair.picture.mode == "RGB" and max(pair.picture.size) <= 600 for pair in found)
    return [(pair.text, pair.picture.tobytes()) for pair in found]


def _artifact(folder: Path) -> None:
    from summary_fixture import write_benchmark, write_evaluation, write_model

    reference = write_model(folder / "base", recipe="none")
    made = write_model(folder / "made")
    write_evaluation(made, 11.0, kl=0.01, reference=reference)
    write_benchmark(made, 20.0)


def _verify(folder: Path) -> Any:
    from llmcompress.artifact import verify
    from llmcompress.artifact.manifest import read_manifest

    report = verify(folder / "made")
    assert report.ok != bool(report.problems)
    if report.ok:
        listed = {record.path: record.sha256 for record in read_manifest(folder / "made").files}
        content = (folder / "made" / "openvino_model.bin").read_bytes()
        assert listed == {"openvino_model.bin": hashlib.sha256(content).hexdigest()}
    return report


def _compare(folder: Path) -> Any:
    from llmcompress.summary import compare
    from llmcompress.summary.page import page

    comparison = compare([folder / "base", folder / "made"])
    assert len(comparison.rows) == 2
    assert "<script>alert" not in page(comparison)
    return comparison


def _card(folder: Path) -> Any:
    import yaml

    from llmcompress.publishing.card import render_card

    text = render_card(folder / "made")
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert "openvino" in str(front)
    assert "<script>alert" not in re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", text)
    return text


def _profile(folder: Path) -> None:
    content = {"name": "fast", "device": "CPU", "cpu": "A CPU", "platform": "linux", "properties": ["NUM_STREAMS=1"]}
    (folder / "profile.json").write_text(json.dumps(content))


def _read_profile(folder: Path) -> Any:
    from llmcompress.spec.runtime import load_profile

    profile = load_profile(folder / "profile.json")
    given = json.loads((folder / "profile.json").read_bytes())
    assert [f"{name}={value}" for name, value in profile.as_properties().items()] or not given["properties"]
    return profile


def doors() -> tuple[Door, ...]:
    """Every way in."""
    text, read_text = _texts("text.txt")
    lines, read_lines = _texts("text.jsonl")
    table, read_table = _texts("text.parquet")
    model = (ModelError, SecurityError)
    dry = ("compress", ".", "-r", "int8", "-o", "out/model", "--dry-run", "--offline")
    source_errors = (ModelError, SecurityError, ResourceError, RecipeError)
    quantized = {"": _by_layout("gptq-4-act-order"), "-mxfp4": _stack}
    quantized |= {f"-{name}": _by_layout(name) for name in ("ct-nvfp4", "bitnet")}
    quantized |= {f"-{name}": _one_weight(name) for name in QUANTIZED_BY_TOOLS}
    measured = ("made/llmcompress.json", "made/eval.json", "made/bench.json")
    return (
        Door("safetensors", _tensors, ("model.safetensors",), _read_tensors, model),
        Door("index", _shards, ("model.safetensors.index.json",), _read_shards, model),
        *(
            Door(f"quantized{name}", make, ("config.json", "model.safetensors"), _repack, source_errors)
            for name, make in quantized.items()
        ),
        Door("gguf", _gguf("legacy"), ("model.gguf",), _repack_container, model),
        Door("gguf-k-quants", _gguf("k-quants"), ("model.gguf",), _repack_container, model),
        Door("onnx", _onnx, ("model.onnx", "config.json"), _repack_container, source_errors),
        Door("onnx-alone", _onnx_alone, ("model.onnx",), _repack_container, model),
        Door("config", _checkpoint, ("config.json",), _dry_run, source_errors, dry, is_slow=True),
        Door(
            "tokenizer",
            _checkpoint,
            ("tokenizer_config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"),
            _tokenizer,
            source_errors,
            is_slow=True,
        ),
        Door("recipe", _recipe, ("recipe.yaml",), _read_recipe, (RecipeError,), ("recipes", "show", "recipe.yaml")),
        Door("plan", _plan, ("plan.yaml",), _read_plan, (RecipeError, UsageError), ("run", "plan.yaml", "--dry-run")),
        Door("txt", text, ("text.txt",), read_text, (DataError,)),
        Door("jsonl", lines, ("text.jsonl",), read_lines, (DataError,)),
        Door("parquet", table, ("text.parquet",), read_table, (DataError,)),
        Door("pictures", _pictures, ("rows.jsonl", "0.png", "1.jpg"), _read_pictures, (DataError,)),
        Door(
            "verify",
            _artifact,
            ("made/llmcompress.json", "made/openvino_model.bin"),
            _verify,
            (ArtifactError,),
            ("verify", "made"),
        ),
        Door("compare", _artifact, measured, _compare, (ArtifactError,), ("compare", "base", "made")),
        Door("card", _artifact, measured, _card, (ArtifactError,)),
        Door("profile", _profile, ("profile.json",), _read_profile, (RecipeError,)),
        *(Door(*each) for each in fuzz_caches.DOORS),
    )
