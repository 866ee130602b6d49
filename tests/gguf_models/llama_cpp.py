"""llama.cpp by its own prebuilt library, for the expectations next to this file and a benchmark.

The npm package @node-llama-cpp/linux-x64 (3.21.1) carries it; LLAMA_CPP names the folder with its libraries.
"""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(os.environ["LLAMA_CPP"])
# Of the context's parameters, as this version has them: 32-bit words.
THREADS, FLASH_ATTENTION, CACHE_TYPES = (7, 8), 13, (26, 27)


class Parameters(c.Structure):
    """More bytes than any of the library's parameters have."""

    _fields_ = [("words", c.c_int32 * 128)]


class Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


@c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
def _silent(level: int, text: bytes, data: object) -> None:
    """Take a line of the library's log."""


def _load() -> tuple[Any, Any]:
    base = c.CDLL(str(FOLDER / "libggml-base.so"), mode=c.RTLD_GLOBAL)
    ggml = c.CDLL(str(next(FOLDER.glob("libggml.v*.so"))), mode=c.RTLD_GLOBAL)
    llama = c.CDLL(str(next(FOLDER.glob("libllama.v*.so"))))
    ggml.ggml_backend_load_all_from_path.argtypes = [c.c_char_p]
    ggml.ggml_backend_load_all_from_path(str(FOLDER).encode())
    base.ggml_quantize_chunk.restype = c.c_size_t
    base.ggml_quantize_chunk.argtypes = [c.c_int, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p]
    for name in ("model", "context", "model_quantize"):
        getattr(llama, f"llama_{name}_default_params").restype = Parameters
    llama.llama_model_load_from_file.restype = c.c_void_p
    llama.llama_model_load_from_file.argtypes = [c.c_char_p, Parameters]
    llama.llama_init_from_model.restype = c.c_void_p
    llama.llama_init_from_model.argtypes = [c.c_void_p, Parameters]
    llama.llama_model_get_vocab.restype = c.c_void_p
    llama.llama_model_get_vocab.argtypes = [c.c_void_p]
    llama.llama_tokenize.argtypes = [c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool]
    llama.llama_decode.argtypes = [c.c_void_p, Batch]
    llama.llama_get_logits.restype = c.POINTER(c.c_float)
    llama.llama_get_logits.argtypes = [c.c_void_p]
    llama.llama_model_quantize.argtypes = [c.c_char_p, c.c_char_p, c.POINTER(Parameters)]
    for name in ("llama_free", "llama_model_free"):
        getattr(llama, name).argtypes = [c.c_void_p]
    llama.llama_log_set(_silent, None)
    llama.llama_backend_init()
    return base, llama


_base, _llama = _load()


def quantized(kind: int, size_bytes: int, values: np.ndarray) -> np.ndarray:
    """Rows of blocks, by the library's own quantizer."""
    rows, columns = values.shape
    values = np.ascontiguousarray(values, np.float32)
    blocks, importance = np.zeros((rows, size_bytes), np.uint8), np.ones(columns, np.float32)
    written = _base.ggml_quantize_chunk(
        kind, values.ctypes.data, blocks.ctypes.data, 0, rows, columns, importance.ctypes.data
    )
    assert written == blocks.nbytes
    return blocks


def _model(path: Path) -> Any:
    model = _llama.llama_model_load_from_file(str(path).encode(), _llama.llama_model_default_params())
    assert model, f"llama.cpp does not read {path}"
    return model


def token_ids(path: Path, texts: list[str]) -> list[list[int]]:
    """Ids with what is put around a text, special tokens in it taken as such."""
    vocabulary, found = _llama.llama_model_get_vocab(_model(path)), []
    for text in texts:
        ids = (c.c_int32 * 4096)()
        count = _llama.llama_tokenize(vocabulary, text.encode(), len(text.encode()), ids, 4096, True, True)
        assert count >= 0
        found.append(list(ids[:count]))
    return found


def logits(path: Path, ids: list[int], vocab_size: int) -> np.ndarray:
    """Logits of every position, cache and attention in f32."""
    return next(logits_of_windows(path, [ids], vocab_size))


def logits_of_windows(path: Path, windows: list[list[int]], vocab_size: int) -> Iterator[np.ndarray]:
    """The same of each window by itself; the library multiplies quantized weights by activations of 8 bits."""
    how, model = _llama.llama_context_default_params(), _model(path)
    for place in THREADS:
        how.words[place] = 1
    for place in (FLASH_ATTENTION, *CACHE_TYPES):
        how.words[place] = 0
    for ids in windows:
        context = _llama.llama_init_from_model(model, how)
        count = len(ids)
        sequences = (c.c_int32 * 1)(0)
        batch = Batch(
            count,
            (c.c_int32 * count)(*ids),
            None,
            (c.c_int32 * count)(*range(count)),
            (c.c_int32 * count)(*[1] * count),
            (c.POINTER(c.c_int32) * count)(*[c.cast(sequences, c.POINTER(c.c_int32))] * count),
            (c.c_int8 * count)(*[1] * count),
        )
        assert _llama.llama_decode(context, batch) == 0
        yield np.ctypeslib.as_array(_llama.llama_get_logits(context), (count, vocab_size)).copy()
        _llama.llama_free(context)
    _llama.llama_model_free(model)


def file_quantized(source: Path, target: Path, kind: int) -> None:
    """Write a file as one of the library's mixtures of formats, by its number of them."""
    how = _llama.llama_model_quantize_default_params()
    # Threads, and the mixture.
    how.words[0], how.words[1] = 1, kind
    assert _llama.llama_model_quantize(str(source).encode(), str(target).encode(), c.byref(how)) == 0
