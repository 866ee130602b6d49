"""The check of weights that runs beside the loading: it stops with the run, and an early finding stops the run."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import build_checkpoint

from llmcompress.errors import ModelError
from llmcompress.loaders import load, loaded_model
from llmcompress.loaders.checking import CheckedWeights, weights_checked
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.loaders.tensors import read_checkpoint
from llmcompress.report.record import FileRecord
from llmcompress.system.progress import Progress


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return resolve(build_checkpoint(tmp_path / "tiny", "llama", num_hidden_layers=1))


def test_a_check_ends_when_the_run_does(source: Source) -> None:
    # Several blocks, so that several steps are reported.
    save_file({"weight": np.zeros(20 << 20, dtype=np.float32)}, source.path / "model.safetensors")
    steps: list[Progress] = []
    began, may_go_on = threading.Event(), threading.Event()

    def hold(step: Progress) -> None:
        steps.append(step)
        began.set()
        may_go_on.wait(60)

    with weights_checked(progress=hold) as check:
        checked = check(source)
        began.wait(60)
        threading.Timer(0.5, may_go_on.set).start()
    assert len(steps) == 1
    assert checked.records.exception() is not None
    assert steps[0].done < steps[0].total


def test_a_finding_that_is_there_already_stops_the_load(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    records: Future[tuple[FileRecord, ...]] = Future()
    records.set_exception(ModelError("1 tensors hold NaN"))

    # Imported before, so that it does not keep the replacement.
    import llmcompress.loaders.quantized.conversion  # noqa: F401

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the checkpoint was converted")

    monkeypatch.setattr("llmcompress.loaders.checkpoint.convert_checkpoint", refuse)
    with pytest.raises(ModelError, match="1 tensors hold NaN"):
        load(source, checked=CheckedWeights(read_checkpoint(source.path), records))


def test_ir_with_another_hash_than_the_hub_states(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.errors import HubError

    for name in ("openvino_model.xml", "openvino_model.bin"):
        (source.path / name).write_bytes(name.encode())
    stated = source._replace(layout="ir", expected_sha256={"openvino_model.bin": "0" * 64})
    monkeypatch.setattr(loaded_model, "fetch_weights", lambda source, progress: source)
    with pytest.raises(HubError, match=f"; the Hub states {'0' * 64}") as caught:
        load(stated)
    assert caught.value.where.endswith("openvino_model.bin")


def test_openvinos_arrays_are_taken_in_one_thread() -> None:
    """Two threads that ask OpenVINO's binding for its first array at once wait for each other for ever."""
    import openvino as ov

    from llmcompress.loaders.scan import scan_constants

    asked: list[threading.Thread] = []

    class Constant:
        def __init__(self, values: list[float]) -> None:
            self._node = ov.opset15.constant(np.array(values, dtype=np.float32))

        @property
        def data(self) -> Any:
            asked.append(threading.current_thread())
            return self._node.data

        def __getattr__(self, name: str) -> Any:
            return getattr(self._node, name)

    class Model:
        def get_ops(self) -> list[Constant]:
            return [Constant([1.0, 2.0]), Constant([3.0, float("nan")])]

    with pytest.raises(ModelError, match="1 tensors hold NaN"):
        scan_constants(Model(), where="model", file="openvino_model.bin")  # type: ignore[arg-type]
    assert asked == [threading.main_thread()] * 2
