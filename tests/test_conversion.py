"""The conversion check: right for a real checkpoint, and it fails for a conversion that is broken on purpose."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixture import encoder_of

import llmcompress
from llmcompress.errors import UsageError
from llmcompress.evaluation.conversion import compare_with_torch


def test_a_right_conversion_passes(ref_model: Path) -> None:
    report = llmcompress.check_conversion(ref_model)
    assert report.passed
    assert report.num_prompts >= 4
    assert report.num_tokens > 100
    assert 0 <= report.mean_kl < 1e-6
    assert report.num_greedy_disagreements == report.num_near_ties


def test_a_broken_conversion_fails(ref_model: Path) -> None:
    import openvino as ov

    loaded = llmcompress.load(ref_model, tokenizer=False)
    model = loaded.clone().model
    # The frequencies of the rotary embedding, a little off: the kind of error a wrong export makes.
    frequencies = [op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_byte_size() == 16 * 4]
    assert frequencies
    for constant in frequencies:
        tensor = ov.Tensor(np.ascontiguousarray(constant.data * np.float32(1.02)))
        replacement = ov.op.Constant(tensor)
        for port in list(constant.output(0).get_target_inputs()):
            port.replace_source_output(replacement.output(0))
    broken = dataclasses.replace(loaded, model=model)
    report = compare_with_torch(broken, encoder_of(ref_model), lambda step: None)
    assert not report.passed
    assert report.mean_kl > 1e-4


def test_an_ir_has_nothing_to_compare_with(artifact: object) -> None:
    with pytest.raises(UsageError, match="needs the checkpoint; this is an OpenVINO IR"):
        llmcompress.check_conversion(artifact("none"))  # type: ignore[operator]
