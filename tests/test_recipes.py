"""The packaged recipes: complete, described, and each what its name says."""

from __future__ import annotations

import pytest

from llmcompress.spec import Recipe, dump_recipe, load_recipe, packaged_recipes

NAMES = [
    "fp8",
    "fp8-ptq",
    "int4",
    "int4-awq",
    "int4-awq-se",
    "int4-distilled",
    "int4-gptq",
    "int4-learned",
    "int4-mixed",
    "int4-npu",
    "int4-sym",
    "int4-sym-distilled",
    "int4-sym-learned",
    "int8",
    "int8-ptq",
    "int8-ptq-accuracy",
    "int8-sym",
    "keep",
    "mxfp4",
    "nf4",
    "none",
]


def test_these_are_packaged_in_this_order() -> None:
    assert [recipe.name for recipe in packaged_recipes()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_named_described_and_read_back(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description is not None
    assert "take it" in recipe.description or "NPU" in recipe.description
    assert len(recipe.description) <= 160
    assert recipe.portable() == recipe, "a packaged recipe must not name a local file"
    assert "\n" not in recipe.description


@pytest.mark.parametrize(
    ("name", "mode", "group_size", "methods"),
    [
        ("int8", "int8_asym", -1, set()),
        ("int8-sym", "int8_sym", -1, set()),
        ("int4", "int4_asym", 128, set()),
        ("int4-sym", "int4_sym", 128, set()),
        ("int4-awq", "int4_asym", 128, {"awq"}),
        ("int4-awq-se", "int4_asym", 128, {"awq", "scale_estimation"}),
        ("int4-gptq", "int4_asym", 128, {"gptq"}),
        ("int4-distilled", "int4_asym", 128, {"gptq"}),
        ("int4-sym-distilled", "int4_sym", 128, {"gptq"}),
        ("int4-learned", "int4_asym", 128, set()),
        ("int4-sym-learned", "int4_sym", 128, set()),
        ("int4-mixed", "int4_asym", 128, set()),
        ("int4-npu", "int4_sym", 128, set()),
        ("nf4", "nf4", 128, set()),
        ("mxfp4", "mxfp4", 32, set()),
        ("fp8", "fp8_e4m3", -1, set()),
    ],
)
def test_does_what_its_name_says(name: str, mode: str, group_size: int, methods: set[str]) -> None:
    weights = load_recipe(name).weights
    assert weights is not None
    assert weights.mode == mode
    assert weights.effective_group_size == group_size
    assert {m for m in ("awq", "scale_estimation", "gptq", "lora_correction") if getattr(weights, m)} == methods
    assert weights.ratio == (0.8 if name == "int4-mixed" else 1.0)


def test_only_the_data_aware_ones_name_a_dataset_and_pin_it() -> None:
    with_data = {recipe.name: recipe.calibration for recipe in packaged_recipes() if recipe.calibration}
    learned = {"int4-distilled", "int4-sym-distilled"}
    assert set(with_data) == {"fp8-ptq", "int4-awq-se", "int4-gptq", "int8-ptq", "int8-ptq-accuracy"} | learned
    trained = {recipe.name: recipe.training for recipe in packaged_recipes() if recipe.training}
    assert set(trained) == learned | {"int4-learned", "int4-sym-learned"}
    for training in trained.values():
        assert training.dataset == "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3"
        assert (training.subset, training.split) == ("wikitext-2-raw-v1", "train")
    for calibration in with_data.values():
        assert calibration.dataset == "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3"
        assert (calibration.subset, calibration.split) == ("wikitext-2-raw-v1", "train")
        assert (calibration.num_samples, calibration.seq_len) == (128, 256)


def test_none_does_nothing() -> None:
    assert load_recipe("none") == Recipe(name="none", description=load_recipe("none").description, method="none")


def test_npu_takes_its_other_group_size_and_nothing_else() -> None:
    recipe = load_recipe("int4-npu", ["weights.group_size=-1"])
    assert recipe.target == "npu"
    assert recipe.weights is not None
    assert recipe.weights.effective_group_size == -1


@pytest.mark.parametrize("name", NAMES)
def test_written_and_read_back_it_is_the_same(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = load_recipe(name)
    (tmp_path / "copy.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "copy.yaml") == recipe
