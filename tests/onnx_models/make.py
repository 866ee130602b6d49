"""Write the models next to this file by their own tools, each with the logits that onnxruntime computes of it.

In an environment of its own, with the tests on the path:
pip install onnx==1.23.2 onnxruntime==1.32.0 onnxruntime-genai==0.18.0 onnxscript==0.7.2 torch transformers==5.5.4
Optimum's own exporter does not fit this version of transformers: the graph is made as it makes it, by torch's exporter.
Where a tool quantizes activations too, what is run for the logits has the same weights in floats.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tiny_models import build_checkpoint  # noqa: E402

IDS = np.arange(1, 33).reshape(2, 16)
SIZES: dict[str, Any] = {
    "dtype": "float32",
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}


def as_optimum(checkpoint: Path, path: Path) -> None:
    """Export a checkpoint with its cache as inputs and outputs."""
    import importlib

    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()

    def causal(config: Any, inputs_embeds: Any, attention_mask: Any, *_: Any, position_ids: Any, **__: Any) -> Any:
        # The class's own mask is not made for this exporter.
        places = torch.arange(attention_mask.shape[1])
        seen = (places[None, None, :] <= position_ids[:, :, None]) & attention_mask[:, None, :].bool()
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]

    importlib.import_module(type(model).__module__).create_causal_mask = causal
    whole = model.forward

    def forward(self: Any, input_ids: Any, attention_mask: Any, position_ids: Any, key: Any, value: Any) -> Any:
        cache = DynamicCache()
        cache.update(key, value, 0)
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        made = whole(**named, past_key_values=cache, use_cache=True)
        return made.logits, made.past_key_values.layers[0].keys, made.past_key_values.layers[0].values

    model.forward = types.MethodType(forward, model)
    past = torch.zeros(2, SIZES["num_key_value_heads"], 3, SIZES["head_dim"])
    given = (torch.ones(2, 5).long(), torch.ones(2, 8).long(), torch.arange(3, 8).repeat(2, 1), past, past)
    inputs = ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value"]
    outputs = ["logits", "present.0.key", "present.0.value"]
    axes = {name: {0: "batch", 2 if "key" in name or "value" in name else 1: f"{name}_length"} for name in inputs}
    axes |= {name: {0: "batch"} for name in outputs} | {"logits": {0: "batch", 1: "length"}}
    with torch.no_grad():
        torch.onnx.export(
            model, given, path, input_names=inputs, output_names=outputs, dynamic_axes=axes, opset_version=18,
            dynamo=False,
        )  # fmt: skip


def logits(path: Path) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options)
    past = np.zeros((2, SIZES["num_key_value_heads"], 0, SIZES["head_dim"]), np.float32)
    given = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "position_ids": np.tile(np.arange(16), (2, 1))}
    names = [each.name for each in session.get_inputs()]
    return session.run(["logits"], {name: given.get(name, past) for name in names})[0]


def in_floats(path: Path, target: Path) -> None:
    """Multiply what was quantized as it comes by the dequantized weights."""
    model = onnx.load(path)
    made_by = {output: node for node in model.graph.node for output in node.output}
    taken_by = {name: node for node in model.graph.node for name in node.input}
    nodes, replaced = [], set()
    for node in model.graph.node:
        if node.op_type != "MatMulInteger":
            continue
        quantized, codes, _, zeros = node.input
        cast = taken_by[node.output[0]]
        last = taken_by[cast.output[0]]
        product = next(made_by[name] for name in last.input if made_by[name].op_type == "Mul")
        scale = next(name for name in product.input if name not in made_by)
        nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zeros], [f"{codes}_floats"], axis=1))
        nodes.append(helper.make_node("MatMul", [made_by[quantized].input[0], f"{codes}_floats"], list(last.output)))
        replaced |= {node.output[0], cast.output[0], last.output[0]}
    nodes += [node for node in model.graph.node if not replaced & set(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(sorted_by_use(nodes, model))
    onnx.save(model, target)


def with_exact_activations(path: Path, target: Path) -> None:
    """Let products of blocks round no activations to 8 bits."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    onnx.save(model, target)


def sorted_by_use(nodes: list[Any], model: Any) -> list[Any]:
    known = {each.name for each in (*model.graph.initializer, *model.graph.input)} | {""}
    ordered = []
    while nodes:
        ready = [node for node in nodes if set(node.input) <= known]
        ordered += ready
        known |= {name for node in ready for name in node.output}
        assert ready, "a circle"
        done = set(map(id, ready))
        nodes = [node for node in nodes if id(node) not in done]
    return ordered


def by_blocks(source: Path, target: Path, **options: Any) -> None:
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, accuracy_level=1, **options)
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    onnx.save(quantizer.model.model, target)


def make(name: str) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kind = "qwen3" if name == "genai-int4" else "llama"
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, plain, exact = Path(scratch) / "checkpoint", Path(scratch) / "plain.onnx", folder / "model.onnx"
        build_checkpoint(checkpoint, kind, **SIZES, tie_word_embeddings=name == "optimum-qdq")
        shutil.copy(checkpoint / "config.json", folder / "config.json")
        if name == "genai-int4":
            given = ["-i", checkpoint, "-o", f"{scratch}/out", "-p", "int4", "-e", "cpu", "-c", f"{scratch}/cache"]
            subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", *given], check=True)
            for file in ("model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"):
                shutil.copy(f"{scratch}/out/{file}", folder / file)
            exact = Path(scratch) / "out" / "floats.onnx"
            with_exact_activations(folder / "model.onnx", exact)
        else:
            as_optimum(checkpoint, plain)
        if name == "optimum-nbits":
            kinds, axes = ("MatMul", "Gather"), (("MatMul", 0), ("Gather", 1))
            by_blocks(plain, exact, bits=4, op_types_to_quantize=kinds, quant_axes=axes)
        elif name == "optimum-qdq":
            by_blocks(plain, exact, bits=4, quant_format=QuantFormat.QDQ)
        elif name == "optimum-int8":
            quantize_dynamic(plain, exact, weight_type=QuantType.QInt8, per_channel=True)
            in_floats(exact, Path(scratch) / "floats.onnx")
            exact = Path(scratch) / "floats.onnx"
        np.save(folder / "logits.npy", logits(exact).astype(np.float32))
    print(name, {path.name: path.stat().st_size for path in folder.iterdir()})


NAMES = ("genai-int4", "optimum-nbits", "optimum-qdq", "optimum-int8")

if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        make(each)
