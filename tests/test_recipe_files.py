"""Recipes in YAML: every mistake has its place and its words, and what is written is read back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcompress.errors import RecipeError
from llmcompress.spec import Calibration, IgnoredScope, Recipe, Runtime, dump_recipe, load_recipe
from llmcompress.spec.modes import BackupMode

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"
INT4 = {"mode": "int4_sym"}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "mine", **fields})


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_unknown_key_names_the_nearest_and_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\nweights:\n  mode: int4_sym\n  grup_size: 64\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:4:3: weights.grup_size"
    assert caught.value.message.startswith("unknown key 'grup_size'; accepted: mode, group_size, ratio")
    assert caught.value.hint == "did you mean group_size?"


def test_wrong_value_lists_the_accepted_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\nweights: {mode: int4sym}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:2:11: weights.mode"
    assert caught.value.message.startswith("got 'int4sym'; accepted: int8_sym, int8_asym, int4_sym")
    assert caught.value.hint == "did you mean int4_sym?"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("{mode: int4_sym, group_size: '64'}", "got '64'; accepted: a whole number"),
        ("{mode: int4_sym, group_size: 6.4e1}", "got 64.0; accepted: a whole number"),
        ("{mode: int4_sym, group_size: true}", "got True; accepted: a whole number"),
        ("{mode: int4_sym, ratio: x}", "got 'x'; accepted: a number"),
        ("{mode: int4_sym, awq: 1}", "got 1; accepted: true or false"),
        ("{mode: int4_sym, ignored_scope: {types: MatMul}}", "got 'MatMul'; accepted: a list"),
        ("{mode: int4_sym, ignored_scope: [MatMul]}", "got a list; accepted: fields with values"),
        ("{mode: int4_sym, ignored_scope: {names: [1]}}", "got 1; accepted: text"),
        ("{mode: int4_sym, ratio: null}", "got null; accepted: a number"),
        ("{mode: hf_abcdefghijklmnopqrstuvwxyzABCD}", "got (hidden: it looks like a token)"),
        ("{group_size: 64}", "is missing"),
        ("{mode: x, ratio: z}", "(and 1 more)"),
        ("int4_sym", "got 'int4_sym'; accepted: fields with values"),
    ],
)
def test_wrong_types_are_refused_not_converted(weights: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, f"name: mine\nweights: {weights}\n"))
    assert words in caught.value.message
    assert caught.value.hint


def test_names_and_paths_that_are_not_there(tmp_path: Path) -> None:
    cases: list[tuple[Any, str, str]] = [
        ("int4_awq", "no packaged recipe of this name; accepted: fp8, fp8-ptq, int4", "did you mean int4-awq?"),
        ("INT4", "no packaged recipe of this name", "did you mean int4?"),
        ("zzzzzz", "no packaged recipe of this name", "llmcompress recipes"),
        ("..", "no packaged recipe of this name", "llmcompress recipes"),
        ("../recipes/int4", "ends in .yaml or .yml", "rename"),
        (tmp_path / "recipe.json", "ends in .yaml or .yml", "rename"),
        ("int4-syn.yaml", "no such file", "did you mean int4-sym?"),
        ("a" * 5000 + ".yaml", "no such file", "check the path"),
        ("a\0.yaml", "no such file", "check the path"),
        (tmp_path, "ends in .yaml or .yml", "rename"),
    ]
    for name, message, hint in cases:
        with pytest.raises(RecipeError) as caught:
            load_recipe(name)
        assert message in caught.value.message
        assert hint in caught.value.hint
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "folder.yaml")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    for text, words in (("", "the file is empty"), ("- a", "a list of fields"), ("a: [", "expected the node content")):
        with pytest.raises(RecipeError, match=words):
            load_recipe(write(tmp_path, text))
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: mine\ndescription: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8") as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:2"
    path.write_bytes(b"\xc3\xa9" * 200_000)
    with pytest.raises(RecipeError, match="more than 64 KiB"):
        load_recipe(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(RecipeError, match="cannot be read: Input/output error") as caught:
        load_recipe(path)
    assert caught.value.where == str(path)


def test_overrides() -> None:
    made = load_recipe(
        "int4",
        [
            "weights.group_size=64",
            "weights.ignored_scope.patterns=['.*gate # x', b]",
            "runtime.dynamic_quantization_group_size=64",
            "weights.group_size_fallback=null",
            "description=shorter",
        ],
    )
    assert made.weights is not None
    assert made.weights.group_size == 64
    assert made.weights.group_size_fallback == "error"
    assert made.weights.ignored_scope == IgnoredScope(patterns=(".*gate # x", "b"))
    assert made.runtime.dynamic_quantization_group_size == 64
    assert made.description == "shorter"


@pytest.mark.parametrize(
    ("overrides", "where", "message", "hint"),
    [
        (
            ["weights.grup_size=1"],
            "`overrides` weights.grup_size",
            "unknown key 'grup_size'",
            "did you mean group_size?",
        ),
        (
            ["weights.grup_size=null"],
            "`overrides` weights.grup_size",
            "unknown key 'grup_size'",
            "did you mean group_size?",
        ),
        (["wieghts.mode=nf4"], "`overrides` wieghts", "unknown key 'wieghts'", "did you mean weights?"),
        (["weights.mode=int4_sim"], "`overrides` weights.mode", "got 'int4_sim'", "did you mean int4_sym?"),
        (["weights.mode.x=1"], "`overrides` weights.mode.x", "weights.mode is one value", "`overrides` weights.mode="),
        (["weights.group_size"], "`overrides`", "not of the form", "`overrides` weights.group_size=64"),
        (["weights.group-size=64"], "`overrides`", "not of the form", "`overrides` weights.group_size=64"),
        (["weights.group_size="], "`overrides` weights.group_size", "no value", "null"),
        (["weights.group_size=0777"], "`overrides` weights.group_size", "'0777'", "leading zeros"),
        (["weights.awq=yes"], "`overrides` weights.awq", "'yes'", "write true"),
        (["weights.awq=true # x"], "`overrides` weights.awq", "from # on", "quotes"),
        (["weights.awq=true", "weights.awq=false"], "`overrides` weights.awq", "overlaps", "one of the two"),
        (
            ["weights.awq=true", "weights={mode: nf4}"],
            "`overrides` weights",
            "overlaps `overrides` weights.awq",
            "one of the two",
        ),
        (["name=null"], "`overrides` name", "is missing", "add it"),
        (
            ["calibration.dataset=x.txt"],
            "`overrides` calibration",
            "nothing in this recipe",
            "`overrides` calibration=null",
        ),
        (
            ["calibration.dataset=[x.txt]", "weights.gptq=true"],
            "`overrides` calibration.dataset",
            "accepted: text",
            "value",
        ),
    ],
)
def test_refused_overrides(overrides: list[str], where: str, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("int4", overrides)
    assert caught.value.where.startswith(where)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_contradiction_is_blamed_on_the_override() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("int8", ["weights.group_size=64"])
    assert caught.value.where == "`overrides` weights.group_size"
    with pytest.raises(RecipeError) as caught:
        load_recipe("int4", ["weights.mode=int8_sym", "weights.group_size=null"])
    assert caught.value.where == "int4.yaml:6:3: weights.group_size_fallback"


def test_another_dataset_drops_what_described_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = load_recipe("int4-gptq", ["calibration.num_samples=16", "calibration.dataset=data/my.txt"])
    assert made.calibration == Calibration(dataset=str(tmp_path / "data/my.txt"), num_samples=16, seq_len=256)
    hub = f"allenai/c4@{COMMIT}"
    made = load_recipe("int4-gptq", ["calibration.split=validation", f"calibration.dataset={hub}"])
    assert made.calibration is not None
    assert (made.calibration.dataset, made.calibration.subset, made.calibration.split) == (hub, None, "validation")
    made = load_recipe("int4-awq", ["calibration={dataset: my.txt}"])
    assert made.calibration is not None
    assert made.calibration.dataset_path() == tmp_path / "my.txt"


def test_a_relative_dataset_starts_at_the_recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "name: mine\nweights: {mode: int4_sym, awq: true}\ncalibration: {dataset: ../text.TXT}\n"
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write(folder, text)
    monkeypatch.chdir(folders[0])
    relative = load_recipe("mine.yaml")
    monkeypatch.chdir(tmp_path)
    absolute = load_recipe(folders[0] / "mine.yaml")
    other = load_recipe("b/mine.yaml")
    assert relative == absolute
    assert relative.calibration is not None
    assert relative.calibration.dataset_path() == folders[0] / "../text.TXT"
    # What is stored is the same whatever the folder, and reads as the file's name.
    assert dump_recipe(relative.portable()) == dump_recipe(other.portable())
    assert "dataset: text.TXT\n" in dump_recipe(other.portable())
    assert Recipe.model_validate_json(other.model_dump_json()) == other


def test_home_and_absolute_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for dataset in ("~/x.txt", str(tmp_path / "x.txt")):
        made = load_recipe("int4-gptq", [f"calibration.dataset={dataset}"])
        assert made.calibration is not None
        assert made.calibration.dataset_path() == tmp_path / "x.txt"
    hub = Calibration(dataset=f"a/b.txt@{COMMIT}", split="train")
    assert hub.dataset_path() is None
    portable = recipe(weights={**INT4, "gptq": True}, calibration=hub.model_dump()).portable()
    assert portable.calibration == hub


def test_dump_leaves_defaults_out_and_quotes_what_yaml_would_misread() -> None:
    made = recipe(
        weights={**INT4, "ignored_scope": {"names": ["no", "0777", "1e2", "2024-01-01", "y", "None", "x: y", "#"]}},
        description="50 % smaller: take it, 'now'",
    )
    assert dump_recipe(made) == (
        "name: mine\n"
        "description: '50 % smaller: take it, ''now'''\n"
        "weights:\n"
        "  mode: int4_sym\n"
        "  ignored_scope:\n"
        "    names: ['no', '0777', '1e2', '2024-01-01', 'y', 'None', 'x: y', '#']\n"
    )


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
odd_texts = st.sampled_from(
    ["no", "1e2", "0x1", "~", "null", "-", "1:30", "a: b", " x ", "é\U0001f600", "\ufeff", "<<"]
)
scopes = st.builds(
    IgnoredScope,
    names=st.lists(texts | odd_texts, max_size=3, unique=True).map(tuple),
    types=st.lists(texts | odd_texts, max_size=2, unique=True).map(tuple),
)
fractions = st.floats(0.001, 0.999)
counts = st.integers(1, 2**31 - 1)
datasets = st.fixed_dictionaries(
    {"dataset": texts.map(lambda text: f"/{text}.jsonl")},
    optional={"text_field": texts, "num_samples": counts, "seed": counts, "chat_template": st.booleans()},
) | st.fixed_dictionaries(
    {"dataset": st.just(f"a/b@{COMMIT}"), "split": texts | odd_texts}, optional={"subset": texts | odd_texts}
)
recipes = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "weights": st.fixed_dictionaries(
            {"mode": st.sampled_from(["int4_sym", "int4_asym", "int3_sym", "nf4"]), "gptq": st.just(True)},
            optional={
                "group_size": st.integers(1, 512),
                "ratio": fractions,
                "awq": st.booleans(),
                "ignored_scope": scopes,
                "backup_mode": st.sampled_from(get_args(BackupMode)),
                "advanced": st.fixed_dictionaries({"gptq_params": st.fixed_dictionaries({"damp_percent": fractions})}),
            },
        ),
        "calibration": datasets,
    },
    optional={
        "description": texts | odd_texts,
        "target": st.sampled_from(["any", "cpu", "gpu"]),
        "runtime": st.builds(Runtime, kv_cache_precision=st.sampled_from([None, "u4"])),
        "gate": st.fixed_dictionaries({}, optional={"max_kl": fractions, "min_top1_agreement": fractions}),
    },
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(fields=recipes)
def test_written_and_read_back_every_recipe_is_equal(fields: dict[str, Any], tmp_path: Path) -> None:
    try:
        made = Recipe.model_validate(fields)
    except ValidationError:
        assume(False)
    path = write(tmp_path, dump_recipe(made))
    assert load_recipe(path) == made
    assert dump_recipe(load_recipe(path)) == dump_recipe(made)


BASE = "name: m\nweights: {mode: int4_sym, awq: true}\ncalibration: {dataset: a.txt, seed: 1}\n"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, len(BASE)),
    length=st.integers(0, 6),
    inserted=st.text(st.sampled_from("ab01.:-[]{},# \n'&*!"), max_size=4)
    | st.sampled_from(["null", "[]", "{}", "1e9"]),
)
def test_a_damaged_file_is_a_recipe_or_a_recipe_error(start: int, length: int, inserted: str, tmp_path: Path) -> None:
    path = write(tmp_path, BASE[:start] + inserted + BASE[start + length :])
    try:
        load_recipe(path)
    except RecipeError as error:
        assert (error.where.startswith(str(path)), bool(error.hint)) == (True, True)  # noqa: PT017 - both are right
