"""The weights are, byte for byte, those that stock optimum-intel and NNCF make with the same options."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import pytest

from llmcompress.compression.compress import compress
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.loaders import LoadedModel, load
from llmcompress.spec import Recipe, load_recipe

CHECKPOINTS = ("ref_model", pytest.param("demo_checkpoint", marks=pytest.mark.slow))
WINDOWS = ("calibration.num_samples=8", "calibration.seq_len=64")


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load(checkpoint)


@pytest.fixture(scope="module")
def text(checkpoint: Path, request: pytest.FixtureRequest) -> Path:
    if checkpoint.name == "demo_checkpoint":
        return BUNDLED_TEXT
    path: Path = request.getfixturevalue("calibration_text")
    return path


def _recipe(name: str, text: Path | None = None) -> Recipe:
    if text is None:
        return load_recipe(name)
    return load_recipe(name, [f"calibration.dataset={text}", *WINDOWS])


def _stock_data_free(checkpoint: Path, output: Path, **options: Any) -> Path:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(**options)
    )
    model.save_pretrained(output)
    return output / "openvino_model.bin"


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("int8", {"bits": 8, "sym": False}),
        ("int4-sym-g64", {"bits": 4, "sym": True, "group_size": 64}),
    ],
)
def test_data_free_equals_optimum(
    recipe: str, options: dict[str, Any], checkpoint: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    ours = load_recipe("int4-sym", ["weights.group_size=64"]) if recipe.startswith("int4") else load_recipe(recipe)
    compress(loaded, ours, tmp_path / "ours")
    stock = _stock_data_free(checkpoint, tmp_path / "stock", **options)
    assert filecmp.cmp(tmp_path / "ours" / "openvino_model.bin", stock, shallow=False)


@pytest.mark.slow
def test_awq_and_scale_estimation_equal_optimum(
    checkpoint: Path, loaded: LoadedModel, text: Path, tmp_path: Path
) -> None:
    import nncf
    import numpy as np
    from optimum.intel import OVConfig, OVModelForCausalLM, OVQuantizer, OVWeightQuantizationConfig

    from llmcompress.data import calibration_windows
    from llmcompress.loaders.tokenizer import load_tokenizer

    recipe = _recipe("int4-awq-se", text)
    assert recipe.calibration is not None
    compress(loaded, recipe, tmp_path / "ours")

    windows = calibration_windows(recipe.calibration, load_tokenizer(checkpoint)).token_ids
    samples = [
        {
            "input_ids": window[None],
            "attention_mask": np.ones((1, 64), dtype=np.int64),
            "position_ids": np.arange(64, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        for window in windows
    ]
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, load_in_8bit=False)
    weights = recipe.weights
    assert weights is not None
    config = OVWeightQuantizationConfig(
        bits=4,
        sym=weights.mode == "int4_sym",
        group_size=weights.group_size,
        group_size_fallback=weights.group_size_fallback,
        quant_method="awq",
        scale_estimation=True,
        num_samples=len(samples),
    )
    OVQuantizer(model).quantize(
        calibration_dataset=nncf.Dataset(samples),
        ov_config=OVConfig(quantization_config=config),
        save_directory=tmp_path / "stock",
    )
    stock = next((tmp_path / "stock").glob("*.bin"))
    assert filecmp.cmp(tmp_path / "ours" / "openvino_model.bin", stock, shallow=False)
