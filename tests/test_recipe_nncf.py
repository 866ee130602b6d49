"""NNCF is the truth for names, defaults, what cannot be combined and what has no effect."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcompress.spec import AdvancedCompression, Recipe, WeightCompression
from llmcompress.spec.modes import BackupMode, GroupSizeFallback, Mode, SensitivityMetric

TEXT = {"dataset": "/data/text.txt"}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "mine", **fields})


def test_names_are_those_of_nncf() -> None:
    import nncf
    from nncf.quantization.advanced_parameters import GroupSizeFallbackMode

    for ours, theirs in (
        (Mode, nncf.CompressWeightsMode),
        (BackupMode, nncf.BackupMode),
        (SensitivityMetric, nncf.SensitivityMetric),
        (GroupSizeFallback, GroupSizeFallbackMode),
    ):
        assert set(get_args(ours)) == {member.value for member in theirs}


def test_advanced_parameters_are_those_of_nncf() -> None:
    import nncf

    elsewhere = {"statistics_path", "lora_adapter_rank", "group_size_fallback_mode", "backend_params"}
    compare_defaults(AdvancedCompression(), nncf.AdvancedCompressionParameters(), elsewhere)


def compare_defaults(ours: Any, theirs: Any, elsewhere: set[str]) -> None:
    names = {field.name for field in dataclasses.fields(theirs)}
    assert set(type(ours).model_fields) == names - elsewhere
    for name in names - elsewhere:
        value, expected = getattr(ours, name), getattr(theirs, name)
        if dataclasses.is_dataclass(expected):
            compare_defaults(value, expected, set())
        else:
            assert value == expected, name


@pytest.mark.parametrize("mode", get_args(Mode))
def test_resolved_defaults_are_those_of_nncf(mode: Any) -> None:
    from nncf import CompressWeightsMode
    from nncf.quantization.algorithms.weight_compression.algorithm import get_weight_compression_configuration

    advanced = {"codebook": [-1.0, 0.0, 1.0]} if mode == "codebook" else {}
    ours = WeightCompression.model_validate({"mode": mode, "advanced": advanced})
    theirs = get_weight_compression_configuration(CompressWeightsMode(mode))
    assert ours.effective_group_size == theirs["group_size"]
    assert ours.effective_backup_mode == theirs["backup_mode"].value
    assert ours.ratio == theirs["ratio"]
    assert ours.all_layers == theirs["all_layers"]


@pytest.fixture(scope="module")
def nncf_accepts() -> Any:
    """NNCF's own checks for an OpenVINO model, without the compression that would follow."""
    import nncf
    import nncf.openvino.quantization.quantize_model as implementation
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    parameter = op.parameter([1, 4], np.float32)
    weight = op.constant(np.ones((4, 4), np.float32))
    model = ov.Model([op.matmul(parameter, weight, False, True)], [parameter])
    data = nncf.Dataset([np.ones((1, 4), np.float32)])

    def accepts(fields: dict[str, Any], *, has_data: bool) -> bool:
        fields = dict(fields)
        fallback = nncf.quantization.advanced_parameters.GroupSizeFallbackMode(fields.pop("group_size_fallback"))
        advanced = nncf.AdvancedCompressionParameters(group_size_fallback_mode=fallback)
        if codebook := fields.pop("codebook"):
            advanced.codebook = np.array(codebook, np.float32)
        fields["mode"] = nncf.CompressWeightsMode(fields["mode"])
        for name, kind in (("backup_mode", nncf.BackupMode), ("sensitivity_metric", nncf.SensitivityMetric)):
            fields[name] = kind(fields[name]) if fields[name] else None
        for name in ("awq", "scale_estimation", "gptq", "lora_correction", "all_layers"):
            fields[name] = fields[name] or None
        try:
            nncf.compress_weights(model, **fields, dataset=data if has_data else None, advanced_parameters=advanced)
        except (nncf.ParameterNotSupportedError, nncf.ValidationError):
            return False
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implementation, "compress_weights_impl", lambda model, **_: model)
        yield accepts


weight_fields = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(get_args(Mode)),
        "group_size": st.sampled_from([None, None, -1, 16, 32, 64]),
        "ratio": st.sampled_from([1.0, 1.0, 0.5]),
        "all_layers": st.booleans(),
        "backup_mode": st.none() | st.sampled_from(get_args(BackupMode)),
        "sensitivity_metric": st.none() | st.sampled_from(get_args(SensitivityMetric)),
        "group_size_fallback": st.sampled_from(get_args(GroupSizeFallback)),
        "codebook": st.sampled_from([None, None, [-1.0, 0.0, 1.0], [1.0, 0.0]]),
        "awq": st.booleans(),
        "scale_estimation": st.booleans(),
        "gptq": st.booleans(),
        "lora_correction": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None)
@given(fields=weight_fields, has_data=st.booleans())
def test_what_nncf_refuses_is_refused_before(nncf_accepts: Any, fields: dict[str, Any], has_data: bool) -> None:
    if nncf_accepts(fields, has_data=has_data):
        return
    advanced = {"codebook": fields.pop("codebook")}
    with pytest.raises(ValidationError):
        recipe(weights={**fields, "advanced": advanced}, **({"calibration": TEXT} if has_data else {}))


@settings(max_examples=300, deadline=None)
@given(fields=weight_fields, has_data=st.booleans())
def test_what_is_accepted_nncf_accepts(nncf_accepts: Any, fields: dict[str, Any], has_data: bool) -> None:
    advanced = {"codebook": fields["codebook"]}
    weights = {name: value for name, value in fields.items() if name != "codebook"}
    try:
        recipe(weights={**weights, "advanced": advanced}, **({"calibration": TEXT} if has_data else {}))
    except ValidationError:
        return
    assert nncf_accepts(fields, has_data=has_data)


@pytest.fixture(scope="module")
def bytes_of() -> Any:
    """What NNCF makes of a model with an embedding, a gated layer and a head: the hash of all its constants."""
    import nncf
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    shapes = {"embedding": (48, 64), "attention": (64, 64), "gate": (96, 64), "up": (96, 64), "down": (64, 96)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    data = nncf.Dataset([random.integers(0, 48, (1, 8)) for _ in range(2)])

    def model() -> ov.Model:
        def linear(inputs: Any, name: str) -> Any:
            return op.matmul(inputs, op.constant(arrays[name], name=name), False, True)

        ids = op.parameter([1, -1], np.int64)
        hidden = op.gather(op.constant(arrays["embedding"]), ids, op.constant(0))
        hidden = op.add(hidden, linear(hidden, "attention"))
        gated = op.multiply(op.swish(linear(hidden, "gate")), linear(hidden, "up"))
        hidden = op.add(hidden, linear(gated, "down"))
        head = op.matmul(hidden, op.constant(arrays["embedding"] * 2), False, True)
        return ov.Model([head], [ids])

    def compressed(*, with_data: bool = False, advanced: dict[str, Any] | None = None, **fields: Any) -> str:
        given = nncf.AdvancedCompressionParameters()
        for name, value in (advanced or {}).items():
            if isinstance(value, dict):
                value = dataclasses.replace(getattr(given, name), **value)
            elif name == "codebook":
                value = np.array(value, np.float32)
            setattr(given, name, value)
        for name, kind in (("mode", nncf.CompressWeightsMode), ("sensitivity_metric", nncf.SensitivityMetric)):
            if name in fields:
                fields[name] = kind(fields[name])
        result = nncf.compress_weights(
            model(), **fields, subset_size=2, dataset=data if with_data else None, advanced_parameters=given
        )
        digest = hashlib.sha256()
        for node in result.get_ordered_ops():
            digest.update(node.get_type_name().encode())
            if node.get_type_name() == "Constant":
                digest.update(str(node.get_element_type()).encode() + node.get_data().tobytes())
        return digest.hexdigest()

    return compressed


INT4 = {"mode": "int4_sym", "group_size": 32}
LONG = {"codebook": [-1.0 + value / 16 for value in range(33)]}
# NNCF reads a ratio of exactly 0 as 1.
NOTHING = {**INT4, "ratio": 1e-9}
WITHOUT_EFFECT = {
    "sensitivity at ratio 1": (INT4, {**INT4, "sensitivity_metric": "max_activation_variance", "with_data": True}),
    "data with nothing that looks at it": (INT4, {**INT4, "with_data": True}),
    "awq at ratio 0": (NOTHING, {**NOTHING, "awq": True}),
    "scale estimation at ratio 0": (NOTHING, {**NOTHING, "scale_estimation": True, "with_data": True}),
    "gptq at ratio 0": (NOTHING, {**NOTHING, "gptq": True, "with_data": True}),
    "lora correction at ratio 0": (NOTHING, {**NOTHING, "lora_correction": True, "with_data": True}),
    "ratio where both modes are equal": ({"mode": "mxfp8_e4m3"}, {"mode": "mxfp8_e4m3", "ratio": 0.5}),
    "all layers where both modes are equal": ({"mode": "mxfp8_e4m3"}, {"mode": "mxfp8_e4m3", "all_layers": True}),
    "scale estimation beside gptq in floating point": (
        {"mode": "nf4", "group_size": 32, "gptq": True, "with_data": True},
        {"mode": "nf4", "group_size": 32, "gptq": True, "with_data": True, "scale_estimation": True},
    ),
    "scale estimation's settings beside gptq": (
        {**INT4, "gptq": True, "scale_estimation": True, "with_data": True},
        {
            **INT4,
            "gptq": True,
            "scale_estimation": True,
            "with_data": True,
            "advanced": {"scale_estimation_params": {"initial_steps": 1, "scale_steps": 1}},
        },
    ),
    "scale estimation without a step": (
        INT4,
        {
            **INT4,
            "scale_estimation": True,
            "with_data": True,
            "advanced": {"scale_estimation_params": {"initial_steps": 0, "scale_steps": 0}},
        },
    ),
    "awq with a long codebook": (
        {"mode": "codebook", "advanced": LONG},
        {"mode": "codebook", "advanced": LONG, "awq": True},
    ),
    "scale estimation with a long codebook": (
        {"mode": "codebook", "advanced": LONG},
        {"mode": "codebook", "advanced": LONG, "scale_estimation": True, "with_data": True},
    ),
    "awq's settings without data": (
        {**INT4, "awq": True},
        {**INT4, "awq": True, "advanced": {"awq_params": {"steps": 3, "alpha_min": 0.4, "percent_to_apply": 0.5}}},
    ),
    "data beside data-free awq": (
        {**INT4, "awq": True},
        {
            **INT4,
            "awq": True,
            "with_data": True,
            "advanced": {"awq_params": {"prefer_data_aware_scaling": False}},
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("plain", "extended"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_what_is_refused_for_having_no_effect_has_none(bytes_of: Any, plain: Any, extended: Any) -> None:
    assert bytes_of(**extended) == bytes_of(**plain)


@pytest.mark.slow
def test_the_comparison_would_see_an_effect(bytes_of: Any) -> None:
    made = [
        bytes_of(**INT4),
        bytes_of(**NOTHING),
        bytes_of(**INT4, awq=True),
        bytes_of(**INT4, awq=True, with_data=True),
        bytes_of(**INT4, gptq=True, with_data=True),
        bytes_of(**INT4, all_layers=True),
    ]
    assert len(set(made)) == len(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {**INT4, "all_layers": True, "lora_correction": True},
        {"mode": "adaptive_codebook", "all_layers": True},
        {
            "mode": "adaptive_codebook",
            "group_size": 32,
            "advanced": {"adaptive_codebook_params": {"across_blocks": True}},
        },
        {"mode": "cb4", "lora_correction": True},
    ],
)
def test_what_is_refused_because_nncf_fails_late_fails(bytes_of: Any, fields: Any) -> None:
    import nncf

    with pytest.raises((KeyError, ValueError, nncf.InternalError)):
        bytes_of(**fields, with_data=True)
