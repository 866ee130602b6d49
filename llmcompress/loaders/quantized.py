"""What happens to a checkpoint that is quantized already."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

from llmcompress.errors import ModelError

Quantization = Literal["none", "keep", "dequantize"]

_ORIGINAL = "take the model as it was before quantization; its page usually links it as the base model"


def check_quantization(config: Mapping[str, Any], where: str = "config.json") -> tuple[Quantization, str]:
    """Return what happens to the quantized weights that ``config`` declares, and a sentence that says it.

    Raises:
        ModelError: the format cannot be converted, or a package it needs is missing.
    """
    declared = config.get("quantization_config") or config.get("compression_config")
    if not declared:
        return "none", ""
    if not isinstance(declared, Mapping):
        raise ModelError(f"quantization_config is {declared!r}; an object is needed", where=where, hint=_ORIGINAL)
    method = declared.get("quant_method")
    if method is None and (declared.get("load_in_8bit") or declared.get("load_in_4bit")):
        method = "bitsandbytes"
    if method == "mxfp4":
        return "dequantize", "The checkpoint's MXFP4 weights are brought back to bf16, then compressed by the recipe."
    if method == "bitnet":
        return "keep", _kept("BitNet ternary")
    if method == "gptq":
        bits = declared.get("bits")
        if bits != 4:
            raise ModelError(f"it is GPTQ of {bits!r} bits; OpenVINO reads 4", where=where, hint=_ORIGINAL)
        _need("gptqmodel", "GPTQ", where)
        return "keep", _kept("GPTQ 4-bit")
    if method == "awq":
        _need("awq", "AWQ", where)
        if _transformers_major() >= 5:
            raise ModelError(
                "it is AWQ: OpenVINO reads AutoAWQ's layers, and transformers 5 loads AWQ with layers of gptqmodel",
                where=where,
                hint=_ORIGINAL,
            )
        return "keep", _kept("AWQ 4-bit")
    raise ModelError(
        f"it is quantized already with {method!r}, which cannot be converted; none, mxfp4, and as they are "
        "gptq (4 bits), awq and bitnet are accepted",
        where=where,
        hint=_ORIGINAL,
    )


def _kept(name: str) -> str:
    return f"The checkpoint's {name} weights are kept as they are; they cannot be compressed again."


def _need(package: str, method: str, where: str) -> None:
    if importlib.util.find_spec(package) is None:
        install = {"awq": "autoawq"}.get(package, package)
        raise ModelError(
            f"it is {method}: the package {package}, which reads that, is not installed",
            where=where,
            hint=f"pip install {install}, or {_ORIGINAL}",
        )


def _transformers_major() -> int:
    import transformers

    return int(transformers.__version__.split(".")[0])
