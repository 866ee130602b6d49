"""What happens to a checkpoint that is quantized already, by what its configuration declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.awq import find_awq
from llmcompress.loaders.quantized.bitnet import find_bitnet
from llmcompress.loaders.quantized.bitsandbytes import find_bitsandbytes
from llmcompress.loaders.quantized.compressed_tensors import find_compressed_tensors
from llmcompress.loaders.quantized.float8 import find_float8
from llmcompress.loaders.quantized.gptq import BITS, find_gptq
from llmcompress.loaders.quantized.mxfp4 import find_mxfp4
from llmcompress.loaders.quantized.packed import ORIGINAL
from llmcompress.loaders.quantized.required import setting
from llmcompress.loaders.quantized.stored import Find
from llmcompress.loaders.quantized.torchao import find_torchao

Quantization = Literal["none", "keep"]

FORMATS: Mapping[str, Find] = {
    "gptq": find_gptq,
    "awq": find_awq,
    "compressed-tensors": find_compressed_tensors,
    "fp8": find_float8,
    "fbgemm_fp8": find_float8,
    "mxfp4": find_mxfp4,
    "bitsandbytes": find_bitsandbytes,
    "bitnet": find_bitnet,
    "torchao": find_torchao,
}
"""The formats whose codes are repacked, by ``quant_method``."""

GGUF, ONNX = "gguf", "onnx"
"""The methods of files whose weights are found by their headers alone."""
_FLOATS = frozenset(("F32", "F16", "BF16"))

_NAMES = {
    "awq": "AWQ 4-bit",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp4": "MXFP4",
    "bitsandbytes": "bitsandbytes",
    "bitnet": "BitNet ternary",
    "torchao": "torchao",
}


def declared(config: Mapping[str, Any]) -> Any:
    """What a configuration says of its quantization; empty where it says nothing."""
    return config.get("quantization_config") or config.get("compression_config")


def quantization_method(settings: Mapping[str, Any]) -> Any:
    """``quant_method``; early bitsandbytes wrote none."""
    method = settings.get("quant_method")
    return (
        "bitsandbytes" if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")) else method
    )


def is_repacked(config: Mapping[str, Any]) -> bool:
    """Whether a configuration declares a format whose codes are repacked."""
    settings = declared(config)
    method = quantization_method(settings) if isinstance(settings, Mapping) else None
    return isinstance(method, str) and method in (*FORMATS, GGUF, ONNX)


def check_quantization(config: Mapping[str, Any], where: str = "config.json") -> tuple[Quantization, str]:
    """Return what happens to the quantized weights that ``config`` declares, and a sentence that says it.

    Raises:
        ModelError: the format cannot be converted.
    """
    settings = declared(config)
    if not settings:
        return "none", ""
    if not isinstance(settings, Mapping):
        raise ModelError(f"quantization_config is {settings!r}; an object is needed", where=where, hint=ORIGINAL)
    method = quantization_method(settings)
    if method in (GGUF, ONNX) and isinstance(settings.get("types"), Mapping):
        types = [name for name in settings["types"] if name not in _FLOATS]
        return ("keep", f"The file's {', '.join(types)} weights are kept as they are.") if types else ("none", "")
    if isinstance(method, str) and method in FORMATS:
        name = f"GPTQ {setting(settings, 'bits', BITS)}-bit" if method == "gptq" else _NAMES[method]
        return "keep", f"The checkpoint's {name} weights are kept as they are."
    raise ModelError(
        f"it is quantized already with {method!r}, which cannot be converted; none and, as they are, "
        f"{', '.join(FORMATS)} are accepted",
        where=where,
        hint=ORIGINAL,
    )
