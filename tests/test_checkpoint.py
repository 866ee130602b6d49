"""Loading a checkpoint: in memory, from mapped files, and refusing what transformers would fill in or drop."""

from __future__ import annotations

import errno
import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

from llmcompress.errors import ModelError, WriteError
from llmcompress.graph.model import check_decoder, mapped_share
from llmcompress.loaders import load
from llmcompress.loaders.checkpoint import clone_model, convert_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama", num_hidden_layers=2)


def _rewrite(source: Path, target: Path, change: Any) -> Path:
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _weights(model: Any) -> dict[str, bytes]:
    return {
        op.get_friendly_name(): op.data.tobytes()
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_byte_size() > 10_000
    }


def test_conversion_writes_no_model(checkpoint: Path, tmp_path: Path) -> None:
    """The compatibility test of the two names inside optimum: were they moved, a staged IR would lie here."""
    model = convert_checkpoint(checkpoint, tmp_path)
    check_decoder(model, where="tiny")
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".jinja"}
    assert mapped_share(model) > 0.95


def test_weights_outlive_the_torch_module(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model = convert_checkpoint(checkpoint, tmp_path)
    copy = clone_model(model)
    del model
    gc.collect()
    _ = [bytearray(1 << 20) for _ in range(64)]
    expected = load_file(checkpoint / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    got = next(data for name, data in _weights(copy).items() if "layers.0.mlp.up_proj" in name)
    assert got == expected.view(torch.uint8).numpy().tobytes()


def test_fallback_through_a_staged_ir(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov
    from optimum.exporters.openvino import convert

    (tmp_path / "memory").mkdir()
    (tmp_path / "staged").mkdir()
    expected = _weights(convert_checkpoint(checkpoint, tmp_path / "memory"))
    # As if optimum's exporter saved through another name.
    monkeypatch.setattr(convert, "_save_model", lambda model, path, *args, **kwargs: ov.save_model(model, path, False))
    model = convert_checkpoint(checkpoint, tmp_path / "staged")
    assert (tmp_path / "staged" / "openvino_model.bin").is_file()
    assert _weights(model) == expected


def test_missing_tensor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    damaged = _rewrite(checkpoint, tmp_path / "missing", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match="1 missing, which transformers would fill with random values") as caught:
        load(damaged)
    assert "model.layers.1.mlp.up_proj.weight" in caught.value.message


def test_unexpected_tensor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    import torch

    damaged = _rewrite(checkpoint, tmp_path / "extra", lambda t: t.update({"model.foreign.weight": torch.ones(4, 4)}))
    with pytest.raises(ModelError, match=r"1 unexpected, which it would drop \(model.foreign.weight\)"):
        load(damaged)


def test_tensor_of_another_shape_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    import torch

    name = "model.layers.0.self_attn.q_proj.weight"
    damaged = _rewrite(checkpoint, tmp_path / "shape", lambda t: t.update({name: torch.ones(4, 4).bfloat16()}))
    with pytest.raises(ModelError, match="transformers could not load the weights"):
        load(damaged)


def test_nan_is_found_before_compression(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"

    def poke(tensors: dict[str, Any]) -> None:
        tensors[name][3, 5] = float("nan")

    damaged = _rewrite(checkpoint, tmp_path / "nan", poke)
    with pytest.raises(ModelError, match=rf"{name}: 1 NaN, the first at \[3, 5\]"):
        load(damaged)
    assert load(damaged, allow_nonfinite=True).num_parameters == load(checkpoint).num_parameters


def test_exporter_error_is_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum.exporters.openvino import convert

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("the exporter's own words\nand a second line")

    monkeypatch.setattr(convert, "export_models", refuse)
    with pytest.raises(ModelError, match="optimum's exporter could not convert this checkpoint") as caught:
        convert_checkpoint(checkpoint, tmp_path)
    assert caught.value.message.endswith("the exporter's own words")


def test_a_disk_that_fails_under_the_exporter_is_no_fault_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.exporters.openvino import __main__ as exporter

    for failing, expected in ((tmp_path / "scratch", WriteError), (tmp_path / "source", ModelError)):

        def main_export(failing: Path = failing, **others: Any) -> None:
            raise OSError(errno.EIO, "Input/output error", str(failing / "config.json"))

        monkeypatch.setattr(exporter, "main_export", main_export)
        with pytest.raises(expected, match="Input/output error") as caught:
            convert_checkpoint(tmp_path / "source", tmp_path / "scratch")
        assert ("the device reports" in (caught.value.hint or "")) == (expected is WriteError)


def test_scratch_that_cannot_be_removed_stops_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, kept = os.unlink, []

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        if path == "config.json":
            kept.append(path)
            raise OSError(errno.EIO, "Input/output error", path)
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert load(checkpoint, tokenizer=False).config["model_type"] == "llama"
    assert kept


def test_ir_that_is_no_decoder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    import openvino as ov
    from openvino import opset13 as ops

    parameter = ops.parameter([-1, 8], ov.Type.f32, name="input_ids")
    parameter.output(0).set_names({"input_ids"})
    ov.save_model(ov.Model([ops.relu(parameter)], [parameter], "relu"), tmp_path / "openvino_model.xml")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(ModelError, match="no stateful causal decoder: it lacks attention_mask, beam_idx, logits"):
        load(tmp_path, tokenizer=False)


def test_damaged_ir_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "openvino_model.xml").write_text("<net name='cut")
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="OpenVINO could not read the model"):
        load(tmp_path, tokenizer=False)
