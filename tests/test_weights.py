"""A recipe's weights block becomes NNCF's own arguments, every advanced parameter included."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llmcompress.compression.nncf.weights import nncf_arguments
from llmcompress.spec import WeightCompression
from llmcompress.system.progress import Progress


def test_only_what_was_asked_is_passed() -> None:
    import nncf

    asked = nncf_arguments(WeightCompression(mode="int8_asym"), num_windows=0)
    assert asked == {"mode": nncf.CompressWeightsMode.INT8_ASYM}


def test_every_plain_option() -> None:
    import nncf

    weights = WeightCompression(
        mode="nf4",
        group_size=64,
        ratio=0.7,
        all_layers=True,
        backup_mode="int8_sym",
        sensitivity_metric="mean_activation_variance",
        awq=True,
        scale_estimation=True,
        ignored_scope={"names": ("a",), "patterns": ("b.*",), "types": ("Gather",)},
    )
    assert nncf_arguments(weights, num_windows=9) == {
        "mode": nncf.CompressWeightsMode.NF4,
        "group_size": 64,
        "ratio": 0.7,
        "all_layers": True,
        "backup_mode": nncf.BackupMode.INT8_SYM,
        "sensitivity_metric": nncf.SensitivityMetric.MEAN_ACTIVATION_VARIANCE,
        "awq": True,
        "scale_estimation": True,
        "ignored_scope": nncf.IgnoredScope(names=["a"], patterns=["b.*"], types=["Gather"]),
        "subset_size": 9,
    }


@pytest.mark.parametrize(
    ("name", "values", "also"),
    [
        (
            "awq_params",
            {"subset_size": 7, "percent_to_apply": 0.01, "alpha_min": 0.1, "alpha_max": 0.9, "steps": 8},
            {},
        ),
        (
            "scale_estimation_params",
            {"subset_size": 5, "initial_steps": 2, "scale_steps": 3, "weight_penalty": 0.5},
            {"scale_estimation": True},
        ),
        ("gptq_params", {"damp_percent": 0.2, "block_size": 64, "subset_size": 3}, {"gptq": True}),
        (
            "lora_correction_params",
            {
                "adapter_rank": 4,
                "num_iterations": 2,
                "apply_regularization": False,
                "subset_size": 6,
                "use_int8_adapters": False,
            },
            {"lora_correction": True},
        ),
    ],
)
def test_advanced_parameters(name: str, values: dict[str, Any], also: dict[str, Any]) -> None:
    import nncf

    weights = WeightCompression(mode="int4_sym", **{"awq": name == "awq_params", **also}, advanced={name: values})
    advanced = nncf_arguments(weights, num_windows=4)["advanced_parameters"]
    expected = nncf.AdvancedCompressionParameters()
    for field, value in values.items():
        setattr(getattr(expected, name), field, value)
    assert advanced == expected


def test_group_size_fallback_and_codebook() -> None:
    import nncf
    import numpy as np
    from nncf.tensor import TensorDataType

    adjusted = WeightCompression(
        mode="int4_sym", group_size_fallback="adjust", advanced={"min_adjusted_group_size": 16}
    )
    assert nncf_arguments(adjusted, num_windows=0)["advanced_parameters"] == nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=16
    )
    fixed = WeightCompression(mode="codebook", advanced={"codebook": (-1.0, 0.0, 1.0)})
    codebook = nncf_arguments(fixed, num_windows=0)["advanced_parameters"].codebook
    assert codebook.dtype == np.float32
    assert codebook.tolist() == [-1.0, 0.0, 1.0]
    adaptive = WeightCompression(
        mode="adaptive_codebook", advanced={"adaptive_codebook_params": {"value_type": "float16", "num_elements": 8}}
    )
    params = nncf_arguments(adaptive, num_windows=4)["advanced_parameters"].adaptive_codebook_params
    assert (params.value_type, params.num_elements) == (TensorDataType.float16, 8)


def test_ratio_zero_is_not_left_to_nncf() -> None:
    weights = WeightCompression(mode="int4_sym", ratio=0.0)
    assert 0 < nncf_arguments(weights, num_windows=0)["ratio"] < 1e-300


def test_nncf_reports_progress_to_us(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    from llmcompress.compression.nncf.weights import compress_weights

    caplog.set_level(logging.ERROR)
    parameter = ops.parameter([-1, 64], ov.Type.f32, name="input")
    matrix = ops.constant(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    model = ov.Model([ops.matmul(parameter, matrix, False, True)], [parameter], "linear")
    seen: list[Progress] = []
    compress_weights(model, WeightCompression(mode="int8_sym"), progress=seen.append)
    assert seen == [
        Progress("applying weight compression", 0, 4 * 64 * 64, "bytes"),
        Progress("applying weight compression", 4 * 64 * 64, 4 * 64 * 64, "bytes"),
    ]
    assert "Applying" not in capsys.readouterr().out


def test_nncf_compiles_once_for_each_kind_of_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    import nncf
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    from llmcompress.compression.nncf.weights import compress_weights

    def chain(num_layers: int) -> ov.Model:
        value = parameter = ops.parameter([-1, 128], ov.Type.f32, name="input")
        for layer in range(num_layers):
            # NNCF computes smaller weights than these without a compiled model.
            matrix = ops.constant(np.random.default_rng(layer).normal(size=(128, 128)).astype(np.float32))
            value = ops.matmul(value, matrix, False, True)
        return ov.Model([value], [parameter], "chain")

    compiled = []
    original = ov.compile_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        compiled.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(ov, "compile_model", counted)
    numbers = []
    for num_layers in (3, 12):
        compiled.clear()
        compress_weights(chain(num_layers), WeightCompression(mode="int8_asym"), engine="nncf")
        numbers.append(len(compiled))
    compiled.clear()
    nncf.compress_weights(chain(12), mode=nncf.CompressWeightsMode.INT8_ASYM)
    assert 0 < numbers[0] == numbers[1] < 12 <= len(compiled)
