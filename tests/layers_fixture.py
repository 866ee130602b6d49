"""Functions that tests run in a worker whose transformers is a layer's."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from llmcompress.errors import ResourceError
from llmcompress.loaders.environments import TransformersLayer
from llmcompress.loaders.layer_folders import install
from llmcompress.loaders.source import Source
from llmcompress.system.progress import Reporter

Array = NDArray[Any]


def look_around(source: Source, more: int = 0, *, progress: Reporter) -> dict[str, Any]:
    """What a worker finds: which transformers, whether our own part for the Hub was imported, and what it was given."""
    import transformers

    return {
        "transformers": transformers.__version__,
        "metadata": metadata.version("transformers"),
        "hub": any(name.startswith("llmcompress.hub") for name in sys.modules),
        "listed": source.files,
        "path": source.path,
        "more": more,
    }


def folder_with(layer: TransformersLayer) -> Path:
    """Install a layer from the registry, or skip the test where that cannot be reached."""
    try:
        return install(layer.requirements)
    except ResourceError as error:
        pytest.skip(f"transformers {layer.version} cannot be had: {error.message.splitlines()[-1]}")


def make(model_type: str, fields: dict[str, Any], directory: Path, *, progress: Reporter) -> int:
    """Write a random checkpoint by the transformers of this process, and return how many parameters it has."""
    import torch
    from tiny_models import write_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    model.save_pretrained(directory / "checkpoint")
    write_tokenizer(directory / "checkpoint")
    return sum(parameter.numel() for parameter in model.parameters())


def make_and_compress_by_stock(model_type: str, fields: dict[str, Any], directory: Path, *, progress: Reporter) -> None:
    """Do the same, and write stock Optimum's int8 of it."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    make(model_type, fields, directory, progress=progress)
    OVModelForCausalLM.from_pretrained(
        directory / "checkpoint",
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(bits=8, sym=False),
    ).save_pretrained(directory / "stock")


def logits_of_gemma(checkpoint: Path, path: Path, ids: Array, *, progress: Reporter) -> Array:
    """What torch computes with the floats of a GGUF file that was made of a checkpoint."""
    import torch
    from gguf_fixture import gemma_as_transformers
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").to(torch.float32).eval()
    tensors = {name: torch.from_numpy(values.copy()) for name, values in gemma_as_transformers(path).items()}
    loaded = model.load_state_dict(tensors, strict=False)
    assert loaded.missing_keys == ["lm_head.weight"]
    assert not loaded.unexpected_keys
    with torch.no_grad():
        found: Array = model(torch.from_numpy(ids)).logits.numpy()
    return found
