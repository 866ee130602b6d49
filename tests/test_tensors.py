from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llmcompress.errors import HubError, ModelError, SecurityError
from llmcompress.loaders import nonfinite
from llmcompress.loaders import scan as scanning
from llmcompress.loaders.safetensors_file import BITS, TensorInfo, read_header
from llmcompress.loaders.scan import scan
from llmcompress.loaders.tensors import (
    INDEX,
    SINGLE,
    choose_weights,
    is_pickled_weight,
    read_checkpoint,
    refuse_empty,
)
from llmcompress.system.progress import Progress

TENSORS = {
    "embed": np.arange(96, dtype=np.float32).reshape(12, 8),
    "ids": np.arange(5, dtype=np.int64),
    "scale": np.array(2.0, np.float32),
    "half": np.ones((3, 2), np.float16),
    "empty": np.zeros((0, 4), np.float32),
}


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def sharded(path: Path, shards: dict[str, dict[str, np.ndarray]], **weight_map: str) -> Path:
    for file, tensors in shards.items():
        save_file(tensors, path / file)
    stated = {name: file for file, tensors in shards.items() for name in tensors}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {**stated, **weight_map}}))
    return path


def test_a_header_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    content = (tmp_path / SINGLE).read_bytes()
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.files, checkpoint.index_file) == ((SINGLE,), None)
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.shape == TENSORS[name].shape
        assert content[tensor.start : tensor.end] == TENSORS[name].tobytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"[]", b"", "does not begin with"),
        (b" {}", b"", "does not begin with"),
        (b"{", b"", "no JSON text"),
        (b"{\xff}", b"", "no JSON text"),
        (b'{"a":' * 100_000, b"", "no JSON text"),
        (b'{"__metadata__": {}, "__metadata__": {}}', b"", "gives '__metadata__' twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not an object of texts"),
        ({"a": 1}, b"", "'a' is not described by dtype, shape and data_offsets"),
        ({"a": {**entry(), "more": 1}}, bytes(8), "'a' is not described by"),
        ({"a": entry("F33")}, bytes(8), "'a' has the dtype 'F33'; known are BF16, BOOL"),
        ({"a": entry(shape=[-2])}, bytes(8), "shape that is no list of sizes"),
        ({"a": entry(shape=[True, 2])}, bytes(8), "shape that is no list of sizes"),
        ({"a": entry(shape=[2.0])}, bytes(8), "shape that is no list of sizes"),
        ({"a": entry(offsets=[0])}, bytes(8), "data_offsets that are no pair"),
        ({"a": entry(offsets=[-8, 0])}, bytes(8), "data_offsets that are no pair"),
        ({"a": entry(shape=[3])}, bytes(8), r"'a' of F32 \[3\] needs 12 bytes, and has 8"),
        ({"a": entry(shape=[1 << 62, 1 << 62])}, bytes(8), "needs .* bytes, and has 8"),
        ({"a": entry("F4", [3], [0, 2])}, bytes(2), r"needs 1\.5 bytes"),
        ({"a": entry(offsets=[8, 0], shape=[0])}, bytes(8), "needs 0 bytes, and has -8"),
        ({"a": entry(offsets=[4, 12])}, bytes(12), "'a' leaves unused bytes before it"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "'b' overlaps the tensor before it"),
        ({"a": entry(), "b": entry()}, bytes(8), "'b' overlaps the tensor before it"),
        ({"a": entry()}, bytes(7), "cut short or padded: .* accounts for"),
        ({"a": entry()}, bytes(9), "cut short or padded: .* accounts for"),
        ({}, bytes(1), "bytes that belong to no tensor"),
    ],
)
def test_headers_that_are_refused_by_name(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = write(tmp_path / SINGLE, header, data)
    with pytest.raises(ModelError, match=message) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.where == str(path)
    if header != b" {}" and "more" not in str(header):  # the library takes these two, against its format
        with pytest.raises(SafetensorError):
            safe_open(path, "numpy")


@pytest.mark.parametrize("dtype", BITS)
def test_elements_have_the_bits_that_the_library_gives_them(tmp_path: Path, dtype: str) -> None:
    for bits in (4, 6, 8, 16, 32, 64):
        path = write(tmp_path / SINGLE, {"a": entry(dtype, [8], [0, bits])}, bytes(bits))
        try:
            with safe_open(path, "numpy"):
                pass
        except SafetensorError:
            with pytest.raises(ModelError, match=f"'a' of {dtype} .* needs .* bytes, and has {bits}"):
                read_header(path)
        else:
            assert read_header(path)["a"].dtype == dtype
            assert BITS[dtype] == bits


def test_every_dtype_of_the_format_is_known() -> None:
    assert sorted(BITS) == [
        "BF16", "BOOL", "C64", "F16", "F32", "F4", "F64", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2",
        "F8_E5M2FNUZ", "F8_E8M0", "I16", "I32", "I64", "I8", "U16", "U32", "U64", "U8",
    ]  # fmt: skip


def test_sizes_are_numbers_of_64_bits(tmp_path: Path) -> None:
    largest = (1 << 63) - 1
    path = write(tmp_path / SINGLE, {"a": entry(shape=[largest, 0], offsets=[0, 0])})
    assert read_header(path)["a"].shape == (largest, 0)
    write(path, {"a": entry(shape=[largest + 1, 0], offsets=[0, 0])})
    with pytest.raises(ModelError, match="shape that is no list of sizes"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"1234567", "only 7 bytes"),
        (struct.pack("<Q", 0), "does not begin with"),
        (struct.pack("<Q", 1 << 63) + b"{}", "states a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 3) + b"{}", "states a header of 3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path)


def test_a_header_over_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / SINGLE).open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(200_000_000)
    with pytest.raises(ModelError, match="at most 100000000 are allowed"):
        read_checkpoint(tmp_path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    content = (tmp_path / SINGLE).read_bytes()
    for size in range(0, len(content), max(1, len(content) // 64)):
        (tmp_path / SINGLE).write_bytes(content[:size])
        with pytest.raises(ModelError):
            read_checkpoint(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_header_is_refused_or_reads_as_the_library_reads_it(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / SINGLE
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header_end - 1))
        content[position] = data.draw(st.sampled_from(b'0123456789[]{}",:FBI\x00\xff ') | st.integers(0, 255))
    path.write_bytes(content)
    try:
        ours = read_header(path)
    except ModelError:
        return
    with safe_open(path, "numpy") as opened:
        assert set(opened.keys()) == set(ours)
        for name, tensor in ours.items():
            view = opened.get_slice(name)
            assert (tuple(view.get_shape()), view.get_dtype()) == (tensor.shape, tensor.dtype)


def test_shards_read_as_one_checkpoint(tmp_path: Path) -> None:
    a, b = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    checkpoint = read_checkpoint(sharded(tmp_path, {a: {"x": np.zeros(2)}, b: {"y": np.zeros(3)}}))
    assert (checkpoint.files, checkpoint.index_file) == ((a, b), INDEX)
    assert {name: tensor.file for name, tensor in checkpoint.tensors.items()} == {"x": a, "y": b}


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    sharded(tmp_path, {"a.safetensors": {"x": np.zeros(2)}})
    save_file({"y": np.zeros(2)}, tmp_path / SINGLE)
    assert set(read_checkpoint(tmp_path).tensors) == {"y"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\\b", "sub/x", "C:x", "", "x\0"])
def test_an_index_that_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(SecurityError, match=r"it names .*; only safetensors files in the same directory"):
        read_checkpoint(sharded(tmp_path, {"a.safetensors": {"x": np.zeros(2)}}, x=name and f"{name}.safetensors"))


def test_an_index_with_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    name = "x" * 300 + ".safetensors"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"xxx\.safetensors: it cannot be read: File name too long"):
        read_checkpoint(tmp_path)


def test_an_index_that_names_a_pickle_file_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.bin").mkdir()  # opening it would be another error
    with pytest.raises(SecurityError, match=r"it names 'w\.bin'"):
        read_checkpoint(sharded(tmp_path, {"a.safetensors": {"x": np.zeros(2)}}, y="w.bin"))


def _both(path: Path) -> None:
    sharded(path, {"a.safetensors": {"x": np.zeros(2), "z": np.ones(1)}, "b.safetensors": {"x": np.zeros(2)}})


def _gone(path: Path) -> None:
    sharded(path, {"a.safetensors": {"x": np.zeros(2)}}, y="b.safetensors")


def _unnamed(path: Path) -> None:
    sharded(path, {"a.safetensors": {"x": np.zeros(2)}}, y="a.safetensors")


def _swapped(path: Path) -> None:
    a, b = "a.safetensors", "b.safetensors"
    sharded(path, {a: {"x": np.zeros(2)}, b: {"y": np.zeros(2)}}, x=b, y=a)


def _extra(path: Path) -> None:
    sharded(path, {"a.safetensors": {"x": np.zeros(2)}})
    save_file({"x": np.zeros(2), "stray": np.zeros(2)}, path / "a.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_both, "tensor 'x' is in a.safetensors and in b.safetensors"),
        (_gone, "b.safetensors: the file is missing"),
        (_unnamed, "1 tensors are named in the index and in no file: y"),
        (_swapped, "2 tensors are in another file than the index says: x, y"),
        (_extra, "1 tensors are in a file and not in the index: stray"),
    ],
)
def test_shards_and_index_that_disagree(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"x": 1}])
def test_an_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="weight_map is not an object that names a file"):
        read_checkpoint(tmp_path)


def test_only_pickle_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SecurityError, match=r"pickle files \(pytorch_model\.bin\), .* safetensors is needed") as caught:
        read_checkpoint(tmp_path)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"])
def test_names_of_weights_that_can_run_code(suffix: str) -> None:
    assert is_pickled_weight(f"pytorch_model{suffix}")
    assert is_pickled_weight(f"sub/optimizer/model{suffix}")
    assert not is_pickled_weight(f"model{suffix}.safetensors")
    for name in ("training_args", "optimizer", "scheduler", "rng_state_0", "scaler", "openvino_model"):
        assert not is_pickled_weight(f"{name}{suffix}")
        assert not is_pickled_weight(f"sub/{name}{suffix}")
    with pytest.raises(SecurityError, match=rf"the weights are pickle files \(a\{suffix}\)"):
        choose_weights([f"optimizer{suffix}", f"a{suffix}"], where="x")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model-00001-of-00002.safetensors", f"the index of these shards is missing: fetch {INDEX} as well"),
        ("adapter_model.safetensors", "it is an adapter: merge it into its base model with `merge_adapter`"),
        ("consolidated.00.safetensors", "it is in its trainer's own layout: give the model as transformers saves it"),
        ("other.safetensors", f"transformers reads {SINGLE} alone: rename the file, if it holds the whole model"),
        ("model.gguf", "give a checkpoint directory as transformers saves it"),
        ("flax_model.msgpack", "give a checkpoint directory as transformers saves it"),
        ("tf_model.h5", "give a checkpoint directory as transformers saves it"),
        ("model.onnx", "give a checkpoint directory as transformers saves it"),
    ],
)
def test_weights_of_another_layout_say_what_to_do(name: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_weights(["config.json", name], where="x")
    assert caught.value.message == f"there is neither {SINGLE} nor {INDEX}; weights of another layout: {name}"
    assert (caught.value.where, caught.value.hint) == ("x", hint)
    with pytest.raises(ModelError) as caught:
        choose_weights(["config.json"], where="x")
    assert caught.value.message == f"there is neither {SINGLE} nor {INDEX}"


def test_of_many_names_five_are_shown() -> None:
    for count, end in ((5, r"e\.bin\), which"), (6, r"e\.bin and 1 more\), which"), (7, r"e\.bin and 2 more\), which")):
        with pytest.raises(SecurityError, match=r"pickle files \(a\.bin, b\.bin, c\.bin, d\.bin, " + end):
            choose_weights([f"{letter}.bin" for letter in "abcdefg"[:count]], where="x")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_weights_without_elements_are_refused(tmp_path: Path, dtype: str) -> None:
    header = {"a": entry(dtype, [0, 4], [0, 0]), "b": entry("F32", [1], [0, 4]), "ids": entry("I64", [0], [4, 4])}
    write(tmp_path / SINGLE, header, bytes(4))
    with pytest.raises(
        ModelError, match="1 of 3 tensors are empty, as in a save under DeepSpeed's ZeRO-3: a\n"
    ) as caught:
        refuse_empty(read_checkpoint(tmp_path))
    assert caught.value.hint.startswith("gather them: run zero_to_fp32.py")
    header.pop("a")
    write(tmp_path / SINGLE, header, bytes(4))
    refuse_empty(read_checkpoint(tmp_path))


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"")
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"neither .* weights of another layout: consolidated\.safetensors"):
        read_checkpoint(tmp_path)


NONFINITE = {  # bit patterns by definition of each format: NaN, Inf, -Inf, and the largest finite value of both signs
    "F64": ("<u8", [0x7FF8 << 48], [0x7FF0 << 48, 0xFFF0 << 48], [0x7FEF_FFFF_FFFF_FFFF, 0xFFEF_FFFF_FFFF_FFFF]),
    "F32": ("<u4", [0x7FC00000, 0xFF800001], [0x7F800000, 0xFF800000], [0x7F7FFFFF, 0xFF7FFFFF]),
    "C64": ("<u4", [0x7FC00000, 0xFF800001], [0x7F800000, 0xFF800000], [0x7F7FFFFF, 0xFF7FFFFF]),
    "F16": ("<u2", [0x7E00, 0xFC01], [0x7C00, 0xFC00], [0x7BFF, 0xFBFF]),
    "BF16": ("<u2", [0x7FC0, 0xFF81], [0x7F80, 0xFF80], [0x7F7F, 0xFF7F]),
    "F8_E5M2": ("<u1", [0x7D, 0xFF], [0x7C, 0xFC], [0x7B, 0xFB]),
    "F8_E4M3": ("<u1", [0x7F, 0xFF], [], [0x7E, 0xFE]),
    "F8_E8M0": ("<u1", [0xFF], [], [0xFE, 0x7F, 0x80]),
    "F8_E4M3FNUZ": ("<u1", [0x80], [], [0x7F, 0xFF, 0x00]),
    "F8_E5M2FNUZ": ("<u1", [0x80], [], [0x7F, 0xFF, 0x00]),
}


@pytest.mark.parametrize("dtype", NONFINITE)
def test_nan_and_inf_are_found_in_every_float_format(tmp_path: Path, dtype: str) -> None:
    kind, nans, infs, finite = NONFINITE[dtype]
    elements = [*finite, 0, 1, *nans, *infs, *finite]
    if dtype == "C64":
        elements += [0] * (len(elements) % 2)
    data = np.array(elements, kind).tobytes()
    count = len(elements) // (2 if dtype == "C64" else 1)
    write(tmp_path / SINGLE, {"w": entry(dtype, [count], [0, len(data)])}, data)
    with pytest.raises(ModelError) as caught:
        scan(read_checkpoint(tmp_path))
    found = [f"{len(nans)} NaN"] * bool(nans) + [f"{len(infs)} Inf"] * bool(infs)
    first = (len(finite) + 2) // (2 if dtype == "C64" else 1)
    assert caught.value.message == (
        f"1 tensors hold NaN or infinite weights: model.safetensors: w: {' and '.join(found)}, the first at [{first}]"
    )
    assert len(scan(read_checkpoint(tmp_path), allow_nonfinite=True)) == 1
    data = np.array(finite * 2, kind).tobytes()
    count = len(finite) * 2 // (2 if dtype == "C64" else 1)
    write(tmp_path / SINGLE, {"w": entry(dtype, [count], [0, len(data)])}, data)
    assert len(scan(read_checkpoint(tmp_path))) == 1


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL", "F4"])
def test_other_formats_have_no_nan(tmp_path: Path, dtype: str) -> None:
    count = {"I64": 2, "F4": 32}.get(dtype, 16)
    write(tmp_path / SINGLE, {"w": entry(dtype, [count], [0, 16])}, b"\xff" * 16)
    assert len(scan(read_checkpoint(tmp_path))) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_position_and_count_match_numpy_wherever_blocks_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(scanning, "_BLOCK_BYTES", data.draw(st.sampled_from([64, 160, 1000])))
    monkeypatch.setattr(nonfinite, "_PIECE_BYTES", 32)
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=4))
    kinds = [data.draw(st.sampled_from([np.float32, np.float16, np.float64, np.int8])) for _ in shapes]
    tensors = {f"t{i}": np.ones(shape, kind) for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))}
    for array in tensors.values():
        if array.dtype.kind == "f" and array.size:
            for index in data.draw(st.lists(st.integers(0, array.size - 1), max_size=3)):
                array.flat[index] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    save_file(tensors, tmp_path / SINGLE)
    wanted = set()
    for name, array in tensors.items():
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            counts = [(np.isnan(array).sum(), "NaN"), (np.isinf(array).sum(), "Inf")]
            words = " and ".join(f"{count} {what}" for count, what in counts if count)
            wanted.add(f"{SINGLE}: {name}: {words}, the first at {bad[0].tolist()}")
    content = (tmp_path / SINGLE).read_bytes()
    if wanted:
        with pytest.raises(ModelError) as caught:
            scan(read_checkpoint(tmp_path))
        assert set(caught.value.message.split("weights: ")[1].split("; ")) == wanted
    record = scan(read_checkpoint(tmp_path), allow_nonfinite=True)[0]
    assert (record.size_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_scan_hashes_every_file_and_reports_its_progress(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(
        sharded(tmp_path, {"a.safetensors": {"x": np.zeros(9)}, "b.safetensors": {"y": np.ones(9)}})
    )
    seen: list[Progress] = []
    records = scan(checkpoint, progress=seen.append)
    assert [record.path for record in records] == ["a.safetensors", "b.safetensors", INDEX]
    for record in records:
        content = (tmp_path / record.path).read_bytes()
        assert (record.size_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    total = sum(record.size_bytes for record in records[:2])
    assert seen[-1] == Progress("check weights", total, total, "bytes")


def test_a_hash_that_is_not_the_expected_one(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    right = hashlib.sha256((tmp_path / SINGLE).read_bytes()).hexdigest()
    assert scan(read_checkpoint(tmp_path), expected_sha256={SINGLE: right})[0].sha256 == right
    with pytest.raises(HubError, match=f"the file's sha256 is {right}; the Hub states 00"):
        scan(read_checkpoint(tmp_path), expected_sha256={SINGLE: "00" * 32})


def test_a_file_that_shrinks_between_header_and_scan(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    checkpoint = read_checkpoint(tmp_path)
    with (tmp_path / SINGLE).open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ModelError, match="changed while it was read"):
        scan(checkpoint)
    (tmp_path / SINGLE).unlink()
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        scan(checkpoint)


def test_a_file_that_shrinks_during_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_BLOCK_BYTES", 64)
    save_file(TENSORS, tmp_path / SINGLE)

    def cut(progress: Progress) -> None:
        os.truncate(tmp_path / SINGLE, 100)

    with pytest.raises(ModelError, match="changed while it was read"):
        scan(read_checkpoint(tmp_path), progress=cut)


def test_tensor_info_counts_from_the_files_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / SINGLE, {"a": entry()}, bytes(8))
    size = path.stat().st_size
    assert read_header(path) == {"a": TensorInfo(SINGLE, "F32", (2,), size - 8, size)}
