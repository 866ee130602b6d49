"""A card says what the manifest and the reports say, and nothing that others wrote does anything on it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rendered_card import Page, front_matter, metadata

import llmcompress
from llmcompress import render_card, write_card
from llmcompress.errors import ArtifactError, UsageError, WriteError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "model_cards"
NAMES = ("demo-none-ov", "demo-int8-ov", "demo-int8-ptq-ov", "demo-int4-ov", "demo-int4-mixed-ov")
REVISION = "0123456789abcdef0123456789abcdef01234567"

Record = dict[str, Any]
Change = Callable[[Record, Record, Record], None]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def artifact(directory: Path, change: Change | None = None, example: str = "demo-int4-ov") -> Path:
    """A copy of an example whose manifest, evaluation and benchmark were changed and belong together again."""
    manifest, evaluation, benchmark = (
        read(EXAMPLES / example / f"{name}.json") for name in ("llmcompress", "eval", "bench")
    )
    if change is not None:
        change(manifest, evaluation, benchmark)
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(manifest)
    (directory / "llmcompress.json").write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    evaluation["model"]["manifest_sha256"] = benchmark["manifest_sha256"] = digest
    (directory / "eval.json").write_text(json.dumps(evaluation))
    (directory / "bench.json").write_text(json.dumps(benchmark))
    return directory


def from_hub(manifest: Record, evaluation: Record, benchmark: Record) -> None:
    manifest["provenance"] |= {
        "kind": "hub",
        "id": "acme/Base-1B",
        "revision": REVISION,
        "card": {
            "license": ["llama3.2"],
            "license_name": "Llama 3.2",
            "license_link": "LICENSE.txt",
            "language": ["en", "no"],
            "sha256": "0" * 64,
        },
    }
    evaluation["text"]["dataset"] = f"Salesforce/wikitext@{REVISION}"
    evaluation["spec"] |= {"dataset": "wikitext2"}


# --- the examples


@pytest.mark.parametrize("name", NAMES)
def test_the_example_cards_are_current(name: str) -> None:
    assert (EXAMPLES / name / "README.md").read_text(encoding="utf-8") == render_card(EXAMPLES / name)


def test_the_examples_are_of_this_checkpoint_and_these_recipes(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import model_cards

    assert {model_cards.directory_name(name) for name in model_cards.RECIPES} == set(NAMES)
    assert {path.name for path in EXAMPLES.iterdir()} == {*NAMES, "README.md"}
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in model_cards.RECIPES:
        folder = EXAMPLES / model_cards.directory_name(name)
        manifest = llmcompress.CompressionReport.model_validate(read(folder / "llmcompress.json"))
        assert manifest.recipe == model_cards.recipe(name).portable()
        assert llmcompress.load_recipe(folder / "recipe.yaml", []).name == name
        for file in manifest.provenance.files:
            assert hashlib.sha256((demo_checkpoint / file.path).read_bytes()).hexdigest() == file.sha256, file.path
        card = manifest.provenance.card
        assert card is not None
        assert hashlib.sha256((demo_checkpoint / "README.md").read_bytes()).hexdigest() == card.sha256
        assert f"({folder.name}/README.md)" in index
        for file_name in ("README.md", "llmcompress.json", "eval.json", "bench.json"):
            assert not re.search(r"/(tmp|home|work|root)/", (folder / file_name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_examples_are_what_is_made_today(demo_checkpoint: Path, tmp_path: Path) -> None:
    before = read(EXAMPLES / "demo-int4-ov" / "llmcompress.json")
    now = llmcompress.compress(demo_checkpoint, "int4", tmp_path / "out").model_dump(mode="json")
    if before["environment"] != now["environment"]:
        pytest.skip("the examples were made with other versions or on another machine")
    assert {**before, "measured": None} == {**now, "measured": None}


# --- metadata


def test_the_metadata_are_the_hubs_and_hold_the_reports_values(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    folder = artifact(tmp_path / "x", from_hub)
    text = render_card(folder, repo_id="acme/Base-1B-int4-ov")
    data = ModelCard(text).data
    assert data.to_dict() == ModelCard(f"---\n{data.to_yaml()}\n---\n").data.to_dict()
    assert data.base_model == ["acme/Base-1B"]
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert (data.license, data.license_name) == ("llama3.2", "Llama 3.2")
    assert data.license_link == f"https://huggingface.co/acme/Base-1B/blob/{REVISION}/LICENSE.txt"
    assert data.language == ["en", "no"]
    assert (data.library_name, data.pipeline_tag) == ("openvino", "text-generation")
    assert data.tags == ["openvino", "llmcompress", "nncf", "int4", "4-bit"]
    evaluation = read(folder / "eval.json")
    lost = evaluation["divergence"]
    assert data.model_name == "Base-1B-int4-ov"
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "perplexity": evaluation["model"]["perplexity"]["perplexity"]["value"],
        "kl_divergence": lost["kl_divergence"]["value"],
        "top1_agreement": lost["top1_agreement"]["value"],
        "perplexity_ratio": lost["perplexity_ratio"]["value"],
    }
    for result in data.eval_results:
        assert (result.task_type, result.dataset_type) == ("text-generation", "Salesforce/wikitext")
        assert result.dataset_revision == REVISION
        assert result.dataset_args["token_ids_sha256"] == evaluation["text"]["token_ids_sha256"]
        assert result.source_url == "https://huggingface.co/acme/Base-1B-int4-ov/blob/main/eval.json"


def test_what_is_not_known_or_not_finite_is_left_out_of_the_metadata(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        manifest["provenance"]["card"] = None
        for each in (evaluation, *evaluation["backends"]):
            each["divergence"]["kl_divergence"]["value"] = "NaN"

    data = metadata(render_card(artifact(tmp_path / "x", change)))
    assert not {"base_model", "license", "license_name", "license_link", "language"} & set(data)
    (result,) = data["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["perplexity", "top1_agreement", "perplexity_ratio"]
    assert result["dataset"]["type"] == "text"
    assert "source" not in result


@pytest.mark.parametrize(
    ("link", "hub_id", "expected"),
    [
        ("LICENSE", "acme/base", f"https://huggingface.co/acme/base/blob/{REVISION}/LICENSE"),
        ("https://example.org/terms", None, "https://example.org/terms"),
        ("LICENSE", None, None),
        ("javascript://%0aalert(1)", "acme/base", None),
        ("../../other/LICENSE", "acme/base", None),
    ],
)
def test_the_link_of_the_license_leads_somewhere_or_is_left_out(
    tmp_path: Path, link: str, hub_id: str | None, expected: str | None
) -> None:
    def change(manifest: Record, *reports: Record) -> None:
        manifest["provenance"] |= {"id": hub_id, "revision": REVISION if hub_id else None}
        manifest["provenance"]["card"] |= {"license_link": link}

    card = render_card(artifact(tmp_path / "x", change))
    assert metadata(card).get("license_link") == expected
    assert link in Page(card).text


@pytest.mark.parametrize(
    ("example", "tags"),
    [
        ("demo-none-ov", ["openvino", "llmcompress"]),
        ("demo-int8-ov", ["openvino", "llmcompress", "nncf", "int8", "8-bit"]),
        ("demo-int8-ptq-ov", ["openvino", "llmcompress", "nncf", "int8", "8-bit"]),
        ("demo-int4-mixed-ov", ["openvino", "llmcompress", "nncf", "int4", "4-bit"]),
    ],
)
def test_tags_say_the_format(example: str, tags: list[str]) -> None:
    assert metadata(render_card(EXAMPLES / example))["tags"] == tags


def test_scores_of_tasks_are_results_of_their_own(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        evaluation["tasks"] = [
            {"task": "arc_easy", "metric": "acc", "value": 0.5, "standard_error": 0.02, "num_samples": 100,
             "version": "1.0"}
        ]  # fmt: skip

    card = render_card(artifact(tmp_path / "x", change))
    result = metadata(card)["model-index"][0]["results"][1]
    assert (result["dataset"]["type"], result["metrics"]) == (
        "arc_easy",
        [{"type": "acc", "value": 0.5, "name": "acc"}],
    )
    assert Page(card).table("metric")["arc_easy"] == ["acc", "0.5 ± 0.02", "100"]
    assert "--tasks arc_easy" in card


def named(folder: Path, name: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"_name_or_path": name}))
    return folder


def test_a_person_names_base_and_license_where_no_file_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmcompress.cli import run

    folder = artifact(tmp_path / "x")
    assert "base_model" not in metadata(render_card(folder))
    words = ["--base-model", "acme/Base-1B", "--license", "apache-2.0"]
    assert run(["card", str(folder), *words]) == 0
    card = (folder / "README.md").read_text()
    data = metadata(card)
    assert (data["base_model"], data["license"]) == (["acme/Base-1B"], "apache-2.0")
    assert not {"license_name", "license_link"} & set(data)
    assert "[acme/Base-1B](https://huggingface.co/acme/Base-1B)" in card
    assert "Stated by the publisher of this model: apache-2.0. It is a derivative of the base" in Page(card).text
    # What was compressed is still what the manifest says.
    assert "compress PATH_TO_THE_BASE" in card
    assert card == render_card(folder, base_model="acme/Base-1B", license="apache-2.0")
    # Also where a file says otherwise.
    other = render_card(artifact(tmp_path / "y", from_hub), base_model="acme/other", license="mit")
    assert (metadata(other)["base_model"], metadata(other)["license"]) == (["acme/other"], "mit")
    capsys.readouterr()
    assert run(["card", str(folder), "--license", "My License"]) == 2
    told = capsys.readouterr().err
    assert "--license: got 'My License'; accepted: the Hub's id of a license, such as apache-2.0" in told
    assert run(["card", str(folder), "--base-model", "not an id"]) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/Base-1B", ["acme/Base-1B"]),
        ("/data/models/Base-1B", None),
        ("../Base-1B", None),
        ("runs/2026/Base-1B", None),
        ("Base-1B", None),
        ("acme/x) [y](http://evil.example", None),
        (["acme/Base-1B"], None),
        (None, None),
    ],
)
def test_the_name_in_config_json_names_the_base(tmp_path: Path, name: object, expected: list[str] | None) -> None:
    card = render_card(named(artifact(tmp_path / "x"), name))
    assert metadata(card).get("base_model") == expected
    assert ("A local checkpoint" in card) == (expected is None)
    # The source's own id comes first.
    hub = render_card(named(artifact(tmp_path / "y", from_hub), "acme/other"))
    assert metadata(hub)["base_model"] == ["acme/Base-1B"]


def test_a_config_that_cannot_be_read_names_nothing(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "x")
    for content in ("{", "[]", "\xff"):
        (folder / "config.json").write_text(content)
        assert "base_model" not in metadata(render_card(folder))


# --- the page


def numbers(cell: str) -> list[float]:
    return [
        float(number.replace(",", ""))
        for number in re.findall(r"\d[\d,]*\.?\d*(?:e-?\d+)?", cell.replace("tokens", ""))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_numbers_are_those_of_the_reports(name: str) -> None:
    manifest, evaluation, benchmark = (
        read(EXAMPLES / name / f"{part}.json") for part in ("llmcompress", "eval", "bench")
    )
    page = Page(render_card(EXAMPLES / name))
    rows = page.table("this model")
    files = {file["path"]: file for file in manifest["files"]}
    size = files["openvino_model.bin"]["size_bytes"]
    base = sum(file["size_bytes"] for file in manifest["provenance"]["files"] if file["path"].endswith(".safetensors"))
    assert numbers(rows["Weights on disk"][0]) == pytest.approx([base / 1e6], rel=5e-3)
    assert numbers(rows["Weights on disk"][1]) == pytest.approx([size / 1e6], rel=5e-3)
    assert numbers(rows["Weights on disk"][2]) == pytest.approx([size / base], rel=5e-3)
    assert numbers(rows["Bits per weight"][1]) == pytest.approx([size * 8 / manifest["num_parameters"]], abs=5e-3)

    def figures(estimate: Record, scale: float = 1.0) -> Any:
        return pytest.approx([estimate[key] * scale for key in ("value", "low", "high")], rel=5e-4)

    # Of both graphs the one that loses more is quoted.
    quoted = max(evaluation["backends"], key=lambda each: each["divergence"]["kl_divergence"]["value"])
    lost = quoted["divergence"]
    perplexity = rows["Perplexity, per token"]
    assert numbers(perplexity[0]) == figures(evaluation["reference"]["perplexity"]["perplexity"])
    assert numbers(perplexity[1]) == figures(quoted["perplexity"]["perplexity"])
    assert numbers(perplexity[2]) == figures(lost["perplexity_ratio"])
    assert numbers(rows["KL divergence, nats per token"][1]) == figures(lost["kl_divergence"])
    assert numbers(rows["Top-1 agreement"][1]) == figures(lost["top1_agreement"], 100)
    assert rows["Verdict"][1] == evaluation["verdict"]
    case = benchmark["cases"][0]
    shape = f"(CPU, {case['prompt_tokens']}+{case['new_tokens']})"
    assert numbers(rows[f"Time to first token, ms {shape}"][1]) == pytest.approx(
        [case["ttft_s"]["p50"] * 1e3], rel=5e-4
    )
    for figure, label in (("prefill", "Prefill"), ("decode", "Decode")):
        stats = case[f"{figure}_tokens_per_s"]
        row = rows[f"{label}, tokens/s {shape}"]
        assert numbers(row[1]) == pytest.approx([stats["p50"], stats["std"]], abs=0.51)
        for ratio in benchmark["ratios"]:
            if ratio["figure"] == f"{figure}_tokens_per_s":
                assert numbers(row[2])[:3] == pytest.approx(
                    [ratio["ratio"][key] for key in ("value", "low", "high")], rel=5e-3
                )
                assert f"of {benchmark['compared_with']}, {ratio['judgement']}" in row[2]
    assert numbers(rows["Peak memory"][1]) == pytest.approx([benchmark["peak_rss_bytes"] / 1e6], rel=5e-3)
    how = page.table("Quality was measured")
    text = evaluation["text"]
    assert numbers(how["on the text"][0]) == [text["num_scored_tokens"], text["num_windows"]]
    assert how["whose tokens have the sha256"] == [text["token_ids_sha256"]]
    steady = benchmark["steadiness"]
    load = page.table("Speed was measured")["while the machine was"][0]
    assert numbers(load)[:2] == pytest.approx([steady["load_before"], steady["load_after"]], abs=0.051)
    properties = quoted["properties"]
    assert f"KV_CACHE_PRECISION {properties['KV_CACHE_PRECISION']}" in how["in the precision"][0]
    runtime = page.table("speed, CPU")
    ran = [*evaluation["backends"], evaluation["reference"], benchmark["settings"][0]]
    for column, each in enumerate(ran):
        assert {key: row[column] for key, row in runtime.items()} == each["properties"]
    assert page.table("bytes") == {
        **{path: [f"{file['size_bytes']:,}", file["sha256"]] for path, file in files.items()},
        "llmcompress.json": ["", hashlib.sha256((EXAMPLES / name / "llmcompress.json").read_bytes()).hexdigest()],
    }
    layers = page.table("shape")
    assert {key: [row[0].replace(" × ", ","), row[1]] for key, row in layers.items()} == {
        layer["name"]: [",".join(map(str, layer["shape"])), layer["mode"]] for layer in manifest["layers"]
    }


def test_devices_that_were_not_tested_are_named(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        evaluation["spec"]["device"] = "GPU.1"

    (table,) = [
        table for table in Page(render_card(artifact(tmp_path / "x", change))).tables if "speed and memory" in table[0]
    ]
    rows = {row[0]: row[1:] for row in table[1:]}
    assert list(rows) == ["CPU", "GPU", "NPU", "GPU.1"]
    assert rows["CPU"][0] == "not tested"
    assert rows["CPU"][1].startswith("tested, ")
    assert rows["GPU"] == rows["NPU"] == ["not tested", "not tested"]
    assert rows["GPU.1"] == ["tested", "not tested"]


def test_quantized_activations_are_accounted_for() -> None:
    manifest = read(EXAMPLES / "demo-int8-ptq-ov" / "llmcompress.json")
    account = manifest["activations"]
    page = Page(render_card(EXAMPLES / "demo-int8-ptq-ov"))
    assert f"{account['num_executed_low']} of {sum(account['executed'].values())} matrix multiplications" in page.text
    rows = page.table("Operation")
    for operation in account["operations"]:
        assert rows[operation["type"]] == [str(operation["num_quantized"]), str(operation["num_in_float"])]
    for operation in account["in_float"]:
        assert operation["name"] in page.text
    calibration = manifest["calibration"]
    assert calibration["token_ids_sha256"] in page.text


@pytest.mark.parametrize(
    ("missing", "rows", "words"),
    [
        (
            "eval.json",
            ("Perplexity, per token", "KL divergence, nats per token", "Top-1 agreement", "Verdict"),
            "quality",
        ),
        ("bench.json", ("Time to first token", "Prefill, tokens/s", "Decode, tokens/s", "Peak memory"), "speed"),
    ],
)
@pytest.mark.parametrize("how", ["gone", "stale", "broken"])
def test_what_was_not_measured_is_called_so(
    tmp_path: Path, missing: str, rows: tuple[str, ...], words: str, how: str
) -> None:
    folder = artifact(tmp_path / "x")
    reason = ""
    if how == "gone":
        (folder / missing).unlink()
    elif how == "stale":
        old = read(EXAMPLES / "demo-int4-ov" / missing)
        (folder / missing).write_text(json.dumps(old))
        reason = f"{missing} lies beside the model and is not used here: it was measured on other bytes, of manifest "
    else:
        (folder / missing).write_text("{")
        reason = f"{missing} lies beside the model and is not used here: it is not JSON."
    card = render_card(folder)
    page = Page(card)
    table = page.table("this model")
    for name in rows:
        assert table[name][1] == "not measured", name
    assert reason in page.text
    assert ("is not used here" in page.text) == bool(reason)
    (devices,) = [table for table in page.tables if "speed and memory" in table[0]]
    assert devices[1][1 if words == "quality" else 2] == "not tested"
    assert ("model-index" in metadata(card)) == (missing != "eval.json")
    assert f"llmcompress {missing.removesuffix('.json')} " not in card
    report = write_card(folder)
    assert missing not in report.used_reports
    assert set(report.unused_reports) == ({missing} if reason else set())


def test_without_a_reference_nothing_is_compared(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        evaluation |= {"reference": None, "divergence": None, "verdict": None, "property_differences": {}}
        evaluation |= {"backends": [], "backend_share": None}

    card = render_card(artifact(tmp_path / "x", change))
    rows = Page(card).table("this model")
    assert rows["Perplexity, per token"][0] == rows["KL divergence, nats per token"][1] == "not measured"
    assert rows["Verdict"][1] == "not measured"
    assert "No reference was measured beside it." in card
    assert "--reference" not in card


def test_another_reference_than_the_base_is_not_called_the_base(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        evaluation["reference"]["provenance"]["files"] = [
            {"path": "openvino_model.bin", "size_bytes": 1, "sha256": "f"}
        ]
        evaluation["reference"]["manifest_sha256"] = "abc"

    card = render_card(artifact(tmp_path / "x", change))
    assert "against the reference" in card
    assert "against the base" not in card
    assert "The reference is not the base itself but" in card
    assert "the artifact with manifest `abc`" in card
    assert "--reference PATH_TO_THE_REFERENCE" in card


def test_the_graph_that_loses_more_is_quoted_and_named(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        model, lost = evaluation["model"], evaluation["divergence"]
        stateful = {"properties": model["properties"], "perplexity": model["perplexity"], "divergence": lost}
        worse = {**lost, "kl_divergence": {**lost["kl_divergence"], "value": 0.75}}
        perplexity = {**model["perplexity"], "perplexity": {**model["perplexity"]["perplexity"], "value": 77.5}}
        paged = {"properties": {"KV_CACHE_PRECISION": "u4"}, "perplexity": perplexity, "divergence": worse}
        evaluation["backends"] = [{**stateful, "backend": "stateful"}, {**paged, "backend": "paged"}]

    card = render_card(artifact(tmp_path / "x", change))
    rows = Page(card).table("this model")
    assert rows["KL divergence, nats per token"][1].startswith("0.75 ")
    assert rows["Perplexity, per token"][1].startswith("77.5 ")
    less = read(tmp_path / "x" / "eval.json")["divergence"]["kl_divergence"]["value"]
    folded = next(line for line in card.splitlines() if "KL divergence on the stateful graph, which loses less" in line)
    assert f"{less:.4g} " in folded
    assert "on the paged graph, which loses more than the stateful one. Intervals hold" in card
    assert "`KV_CACHE_PRECISION` u4" in card
    metrics = metadata(card)["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in metrics}["kl_divergence"] == 0.75
    assert all(metric["name"].endswith(" on the paged graph") for metric in metrics)


def test_a_lower_bound_is_called_one(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        for each in (evaluation, *evaluation["backends"]):
            each["divergence"] |= {"exact": False, "top_k": 64, "captured_mass": 0.9}

    card = render_card(artifact(tmp_path / "x", change))
    assert "KL divergence, nats per token, a lower bound from the top 64" in Page(card).table("this model")
    assert "(a lower bound)" in metadata(card)["model-index"][0]["results"][0]["metrics"][1]["name"]
    assert "--reference-scores cached" in card


def test_the_licenses_section_invents_nothing(tmp_path: Path) -> None:
    def page(card: Record | None) -> str:
        def change(manifest: Record, *reports: Record) -> None:
            manifest["provenance"]["card"] = card

        return Page(render_card(artifact(tmp_path / "x", change))).text

    assert "The base states: mit. This model is a derivative" in page({"license": ["mit"], "sha256": ""})
    assert "The base's model card states no license." in page({"sha256": ""})
    assert "No model card of the base was at hand, so that no license is known" in page(None)
    told = page({"problem": "its front matter is not YAML", "sha256": ""})
    assert "is not known here: its model card could not be read: its front matter is not YAML." in told
    assert "derivative" not in told


def test_more_layers_than_a_page_holds_are_counted(tmp_path: Path) -> None:
    def change(manifest: Record, *reports: Record) -> None:
        layer = manifest["layers"][0]
        manifest["layers"] = [{**layer, "name": f"layer{number}"} for number in range(1234)]

    page = Page(render_card(artifact(tmp_path / "x", change)))
    assert len(page.table("shape")) == 1000
    assert "234 more are in llmcompress.json." in page.text


def test_how_bits_were_learned_is_among_the_parameters(tmp_path: Path) -> None:
    def windows(dataset: str, num_windows: int) -> Record:
        return {
            "dataset": dataset, "num_windows": num_windows, "seq_len": 64, "seed": 3, "token_ids_sha256": "5" * 64,
        }  # fmt: skip

    def change(manifest: Record, *reports: Record) -> None:
        recipe = llmcompress.load_recipe("int4-distilled", ["training.learning_rate=0.004"])
        manifest["recipe"] = recipe.model_dump(mode="json")
        point = {"step": 0, "loss": None, "validation": 0.5}
        curve = {"name": "model", "points": [point], "kept_step": 500, "gain": 0.1, "gain_standard_error": 0.01}
        manifest["training"] = {
            "method": "distillation", "loss": "kl_divergence", "windows": windows("their.txt", 1024),
            "validation": windows("their.txt", 32), "num_steps": 500, "num_layers": 28, "changed_codes": 0.1234,
            "device": "cpu", "products_in": "f32", "curves": [curve],
        }  # fmt: skip

    text = render_card(artifact(tmp_path / "x", change))
    for row in (
        "| `training.method` | `distillation` |",
        "| `training.what` | `scales, zero_points, rounding` |",
        "| `training.learning_rate` | `0.004` |",
        f"| `training.windows` | `their.txt: 1024 windows of 64 tokens, seed 3, tokens sha256 {'5' * 64}` |",
        "| `training.changed_codes` | `12.34% of 28 weights` |",
        "| `training.kept` | `what was learned, in 1 of 1 trainings` |",
        "- Its bits were learned from `their.txt`; texts that are unlike it can lose more.",
    ):
        assert row in text.splitlines()
    assert "training." not in render_card(artifact(tmp_path / "without"))


# --- what to run


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_are_accepted_by_the_command_line(name: str) -> None:
    from llmcompress.cli.app import load_command

    (block,) = [text for text in Page(render_card(EXAMPLES / name)).blocks if text.startswith("llmcompress ")]
    verbs = []
    for line in block.splitlines():
        program, verb, *words = shlex.split(line)
        assert program == "llmcompress"
        context = load_command(verb).make_context(verb, words)
        verbs.append(verb)
        if verb == "eval":
            spec = read(EXAMPLES / name / "eval.json")["spec"]
            given = {key: value for key, value in context.params.items() if key in spec and value is not None}
            assert given == {key: spec[key] for key in given}
            assert (context.params["source"], context.params["reference"]) == (name, "PATH_TO_THE_BASE")
        if verb == "bench":
            spec = read(EXAMPLES / name / "bench.json")["spec"]
            assert context.params["prompt_tokens"] == ",".join(map(str, spec["prompt_tokens"]))
            assert context.params["repetitions"] == spec["repetitions"]
    assert verbs == ["compress", "eval", "bench"]


def test_options_that_were_given_are_in_the_commands(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        from_hub(manifest, evaluation, benchmark)
        manifest["provenance"]["trust_remote_code"] = True
        manifest["tokenizer"] = "none"
        evaluation["spec"] |= {"protocol": "sliding", "stride": 64, "num_windows": 5, "kl_margin": 0.02}
        evaluation["spec"] |= {"dataset": "chat.jsonl", "chat_template": True}
        evaluation["gate"]["checks"].append(
            {"name": "max_kl", "passed": True, "value": 0.01, "required": 0.05, "detail": ""}
        )
        evaluation["reference"]["provenance"]["trust_remote_code"] = True
        evaluation["generations"] = {
            "num_prompts": 4, "max_new_tokens": 8, "identical_share": 0.5, "equal_prefix_share": 0.6,
            "first_divergent_token": [],
        }  # fmt: skip
        benchmark["spec"] |= {
            "threads": [1, 2],
            "batch_sizes": [1, 4],
            "properties": ["A=1", "B=x y"],
            "engine": "genai",
        }

    card = render_card(artifact(tmp_path / "x y", change))
    (block,) = [text for text in Page(card).blocks if text.startswith("llmcompress ")]
    compress, evaluate, bench = block.splitlines()
    assert compress == (
        f"llmcompress compress acme/Base-1B --revision {REVISION} --recipe recipe.yaml -o 'x y' "
        "--trust-remote-code --no-tokenizer"
    )
    assert evaluate.startswith(
        f"llmcompress eval 'x y' --reference acme/Base-1B --reference-revision {REVISION} --trust-remote-code "
        "--dataset chat.jsonl --chat-template --protocol sliding"
    )
    for words in (
        "--stride 64",
        "--num-windows 5",
        "--kl-margin 0.02",
        "--max-kl 0.05",
        "--generations 4",
        "--trust-remote-code",
    ):
        assert words in evaluate
    for words in ("--threads 1,2", "--batch-size 1,4", "--property A=1 --property 'B=x y'", "--runtime genai"):
        assert words in bench
    assert "openvino_genai" not in card
    assert "The tokenizer was left out" in card


def test_a_merged_adapter_is_the_source_of_the_commands(tmp_path: Path) -> None:
    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        from_hub(manifest, evaluation, benchmark)
        for provenance in (manifest["provenance"], evaluation["reference"]["provenance"]):
            provenance["adapter"] = {"id": "acme/lora", "revision": "b" * 40}

    (block,) = [text for text in Page(render_card(artifact(tmp_path / "x", change))).blocks if "llmcompress c" in text]
    compress, evaluate, _ = block.splitlines()
    assert compress.startswith(f"llmcompress compress acme/lora --revision {'b' * 40} --recipe recipe.yaml")
    assert "--merge-adapter" in compress
    assert f"--reference acme/lora --reference-revision {'b' * 40} --merge-adapter" in evaluate


def test_the_lock_is_what_pip_reads(tmp_path: Path) -> None:
    from packaging.requirements import Requirement

    (lock,) = [text for text in Page(render_card(EXAMPLES / "demo-int4-ov")).blocks if text.startswith("# Python")]
    head, *lines = lock.splitlines()
    versions = read(EXAMPLES / "demo-int4-ov" / "llmcompress.json")["environment"]["versions"]
    assert head.startswith(f"# Python {versions.pop('python')}")
    assert {Requirement(line).name: str(Requirement(line).specifier)[2:] for line in lines} == versions


def test_the_recipe_on_the_page_is_the_recipe(tmp_path: Path) -> None:
    (block,) = [text for text in Page(render_card(EXAMPLES / "demo-int4-mixed-ov")).blocks if text.startswith("name:")]
    (tmp_path / "recipe.yaml").write_text(block)
    assert llmcompress.load_recipe(tmp_path / "recipe.yaml") == llmcompress.load_recipe("int4-mixed")


@pytest.mark.parametrize("repo_id", [None, "acme/demo-int4-ov"])
def test_the_programs_are_python(repo_id: str | None) -> None:
    card = render_card(EXAMPLES / "demo-int4-ov", repo_id=repo_id)
    programs = [text for text in Page(card).blocks if "import" in text]
    assert len(programs) == 2
    for program in programs:
        ast.parse(program)
        assert json.dumps(repo_id or "demo-int4-ov") in program
    assert f"--source_model {repo_id or 'NAMESPACE/demo-int4-ov'} " in card


@pytest.mark.slow
def test_the_programs_run(demo_checkpoint: Path, tmp_path: Path) -> None:
    llmcompress.compress(demo_checkpoint, "int4", tmp_path / "model")
    for program in (text for text in Page(render_card(tmp_path / "model")).blocks if "import" in text):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.strip()) > 5


# --- what others wrote

PAYLOADS = [
    "{{ 7 * 7 }}{% raw %}{% for x in range(9) %}{# #}",
    "{{ self.__init__.__globals__ }}",
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> '",
    "</details></td></table><h1>x</h1>",
    "a | b || c \\| d \\\\| e",
    "`code` ``two`` ```three",
    "x\n---\nlicense: mit\n---\n# heading",
    "[a](javascript:alert(1)) ![b](http://evil.example/p.png) [c]: http://evil.example",
    "http://evil.com/x //evil.com www.evil.com evil.com evil.py me@evil.com mailto:me@evil.com ftp://evil.com",
    "**bold** _it_ ~~del~~ $x$ *** ___",
    "<!-- open",
    "--> close",
    "&lt;b&gt; &amp; &#60;",
    "# heading",
    "- item",
    "1. item",
    "---",
    "===",
    "> quote",
    "~~~",
    "```\n</code></pre><b>x</b>\n```",
    "|---|---|",
    "\u202ereversed\u200b\x07",
    "no",
    "1e3",
    "0777",
    "null",
    "!!python/object/apply:os.system ['true']",
    "*alias &anchor",
    "a: b # c",
    "\ttab",
    "'", '"', "\\",
    "x" * 2000,
]  # fmt: skip


def poison(text: str) -> Change:
    """Put a text wherever the manifest and the reports can hold one that others wrote."""

    def change(manifest: Record, evaluation: Record, benchmark: Record) -> None:
        provenance = manifest["provenance"]
        for record in (provenance, evaluation["model"]["provenance"], evaluation["reference"]["provenance"]):
            record |= {"id": f"{text}!", "revision": text, "model_type": text, "architecture": text, "dtype": text}
        provenance["card"] = {
            "license": [text, text],
            "license_name": text,
            "license_link": f"https://{text}",
            "language": [text],
            "sha256": text,
        }
        for number, layer in enumerate(manifest["layers"]):
            layer |= {"name": f"{text}{number}", "mode": text}
        for file in manifest["files"]:
            if file["path"] != "openvino_model.bin":
                file |= {"path": text, "sha256": text}
        for record in (manifest, evaluation, benchmark):
            record["environment"] |= {"cpu": text, "platform": text}
            record["environment"]["versions"] |= {"openvino": text, text.replace("\n", " "): text}
        manifest["recipe"]["description"] = visible(text) or "harmless"
        manifest["activations"] = {
            "mode": text, "num_quantizers": 1, "operations": [{"type": text, "num_quantized": 1, "num_in_float": 1}],
            "in_float": [{"name": text, "type": text, "reason": text}], "device": text, "num_executed_low": 1,
            "executed": {text: 1},
        }  # fmt: skip
        manifest["calibration"] = {
            "dataset": text, "num_windows": 1, "seq_len": 2, "seed": 3, "token_ids_sha256": text,
        }  # fmt: skip
        evaluation["text"] |= {"dataset": text, "token_ids_sha256": text}
        evaluation["tasks"] = [
            {"task": text, "metric": text, "value": 0.5, "standard_error": None, "num_samples": None, "version": text}
        ]
        evaluation["reference"]["manifest_sha256"] = text
        evaluation["model"]["properties"] = {text: text}
        evaluation["reference"]["properties"] = {}
        benchmark["settings"][0] |= {"properties": {}, "device": text}
        benchmark["cases"][0]["device"] = text
        benchmark["compared_with"] = text
        benchmark["ratios"][0]["judgement"] = "better"

    return change


def visible(text: str) -> str:
    """How a text is to be read on the page: on one line, what cannot be seen by its number, cut when it is long."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return line if len(line) <= 300 else line[:299] + "…"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_others_wrote_is_shown_and_does_nothing(tmp_path: Path, payload: str) -> None:
    example = "demo-int8-ov"
    harmless = Page(render_card(artifact(tmp_path / "a", poison("harmless"), example)))
    card = render_card(artifact(tmp_path / "b", poison(payload), example))
    page = Page(card)

    # The same page, tag by tag, link by link and cell by cell, but for the text in it.
    assert page.tags == harmless.tags
    assert [[len(row) for row in table] for table in page.tables] == [
        [len(row) for row in table] for table in harmless.tables
    ]
    shown = visible(payload)
    assert page.table("shape").keys() == {
        visible(f"{payload}{number}") for number in range(len(harmless.table("shape")))
    }
    for text in (
        f"The base states: {shown}, {shown}, named {shown}, see ",
        f"looked at {shown}",
        f"of {shown}, better",
    ):
        assert text in page.text

    data = metadata(card)
    assert data["license"] == [payload, payload]
    assert data["license_name"] == payload
    assert data["license_link"] == f"https://{payload}"
    assert data["language"] == payload
    assert "base_model" not in data
    results = data["model-index"][0]["results"]
    assert results[0]["dataset"]["args"]["token_ids_sha256"] == payload
    assert results[1]["dataset"]["name"] == payload

    from huggingface_hub import ModelCard

    from llmcompress.spec.yaml_text import load_yaml

    assert ModelCard(card).data.license_name == payload
    # Readers of YAML 1.2, as the Hub's, see other numbers than PyYAML does.
    assert load_yaml(front_matter(card), where="card") == data


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_others_wrote_begins_no_block_of_ones_own_template(tmp_path: Path, payload: str) -> None:
    template = tmp_path / "t.j2"
    name = "evaluation.text.dataset"
    template.write_text(
        f"{{{{ {name} }}}}\n\ntext\n{{{{ {name} }}}}\n\n- {{{{ {name} }}}}\n\n> {{{{ {name} }}}}\n\n"
        f"| {{{{ {name} }}}} |\n|---|\n| {{{{ {name} }}}} |\n\n"
        f"<b title='{{{{ {name} }}}}' class=\"{{{{ {name} }}}}\">{{{{ {name} }}}}</b>\n"
    )
    tags = []
    for number, text in enumerate(("harmless", payload)):

        def change(manifest: Record, evaluation: Record, benchmark: Record, text: str = text) -> None:
            evaluation["text"]["dataset"] = text

        page = Page(render_card(artifact(tmp_path / str(number), change), template=template))
        tags.append([(tag, [key for key, _ in attributes]) for tag, attributes in page.tags])
        assert page.text.count(visible(text)) >= 7
    assert tags[0] == tags[1]


@pytest.mark.parametrize("name", ["{{ 7*7 }}", "<b>x", "a|b", "# x", "x'y\"z", "`x`", "[x](y)", "- x", "x\ny"])
def test_a_directory_can_have_any_name(tmp_path: Path, name: str) -> None:
    harmless = Page(render_card(artifact(tmp_path / "harmless")))
    card = render_card(artifact(tmp_path / name))
    page = Page(card)
    assert page.tags == harmless.tags
    assert page.text.lstrip().startswith(visible(name) + "\n")
    assert metadata(card)["model-index"][0]["name"] == name
    (block,) = [text for text in page.blocks if text.startswith("llmcompress ")]
    assert shlex.split(block)[shlex.split(block).index("-o") + 1] == name
    for program in (text for text in page.blocks if "import" in text):
        assert name in {node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)}


def test_only_a_valid_id_becomes_a_link(tmp_path: Path) -> None:
    card = render_card(artifact(tmp_path / "x", from_hub))
    assert "[acme/Base-1B](https://huggingface.co/acme/Base-1B)" in card
    assert f"pinned to the commit `{REVISION}`" in card

    def change(manifest: Record, *reports: Record) -> None:
        manifest["provenance"] |= {"id": "acme/x) [y](http://evil.example", "revision": "main"}

    card = render_card(artifact(tmp_path / "y", change))
    assert "evil" not in card
    assert "A local checkpoint" in card


# --- README.md


def test_the_card_is_written_once_and_belongs_to_no_manifest(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "x")
    report = write_card(folder)
    path = folder / "README.md"
    content = path.read_bytes()
    assert (report.path, report.written, report.size_bytes) == (str(path), True, len(content))
    assert report.used_reports == ("eval.json", "bench.json")
    assert report.manifest_sha256 == hashlib.sha256((folder / "llmcompress.json").read_bytes()).hexdigest()
    assert content.decode() == render_card(folder)
    assert {item.name for item in folder.iterdir()} == {"README.md", "llmcompress.json", "eval.json", "bench.json"}
    before = path.stat()
    assert not write_card(folder).written
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    # A card of ours that nobody touched gives way, also with the ends of lines that Git makes on Windows.
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    assert write_card(folder, repo_id="acme/x").written
    assert b"acme/x" in path.read_bytes()


@pytest.mark.parametrize("content", [b"# my own\n", b"", b"\xff\xfe", None])
def test_a_readme_of_a_person_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    folder = artifact(tmp_path / "x")
    path = folder / "README.md"
    if content is None:
        write_card(folder)
        content = path.read_bytes().replace(b"## Limits\n", b"## Limits\n\nAnd more of them.\n")
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"README.md: was written or changed by somebody else.*\n.*`overwrite`"):
        write_card(folder)
    assert path.read_bytes() == content
    assert write_card(folder, overwrite=True).written
    assert path.read_text() == render_card(folder)


def test_a_readme_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact(tmp_path / "x")
    (folder / "README.md").mkdir()
    with pytest.raises(WriteError, match=r"README.md: cannot be replaced: Is a directory"):
        write_card(folder, overwrite=True)
    (folder / "README.md").rmdir()
    write_card(folder)
    before = (folder / "README.md").read_bytes()

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError, match="No space left on device"):
        write_card(folder, repo_id="acme/x")
    assert (folder / "README.md").read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


def test_what_is_no_artifact_and_what_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no llmcompress artifact"):
        render_card(tmp_path)
    folder = artifact(tmp_path / "x")
    with pytest.raises(UsageError, match="'not an id' is neither"):
        render_card(folder, repo_id="not an id")


# --- templates


def test_a_template_extends_the_packaged_one(tmp_path: Path) -> None:
    template = tmp_path / "t.j2"
    template.write_text(
        '{% extends "card.md.j2" %}{% block limits %}{{ super() }}\n'
        "- Ours: <b>{{ manifest.recipe.name }}</b>.\n{% endblock %}"
    )
    folder = artifact(tmp_path / "x")
    usual, own = render_card(folder), render_card(folder, template=template)
    assert "- Ours: <b>int4</b>." in own
    assert metadata(own) == metadata(usual)
    assert set(usual.splitlines()[:-1]) <= set(own.splitlines())
    assert write_card(folder).written
    assert write_card(folder, template=template).written


def test_a_template_may_bring_its_own_front_matter(tmp_path: Path) -> None:
    template = tmp_path / "t.j2"
    template.write_text("---\n{{ front_matter }}inference: false\n---\n# {{ title }} {{ repo_id }}\n")
    folder = artifact(tmp_path / "x")
    card = render_card(folder, template=template)
    assert metadata(card) == {**metadata(render_card(folder)), "inference": False}
    assert "# x not measured\n" in card


def test_the_variables_and_filters_that_are_documented_are_there(tmp_path: Path) -> None:
    from jinja2.defaults import DEFAULT_FILTERS as FILTERS

    from llmcompress.artifact import read_measurements
    from llmcompress.publishing.base_model import Stated, find_base
    from llmcompress.publishing.content import variables
    from llmcompress.publishing.sandbox import _environment

    folder = artifact(tmp_path / "x")
    found = read_measurements(folder)
    there = variables(found, find_base(found.manifest, Stated(), folder), title="x", repo_id=None)
    named, filters = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8").split("| filter |")
    assert set(there) == set(re.findall(r"^\| `(\w+)` \|", named, re.MULTILINE))
    cells = re.findall(r"^\|([^|]*)\|", filters, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)", cell)} == _environment().filters.keys() - FILTERS
    template = tmp_path / "t.j2"
    template.write_text(
        "{{ evaluation.divergence.kl_divergence | interval_text('.3g') }} {{ 2519565 | size_text }} "
        "{{ 2519565 | count_text }} {{ evaluation.text.num_scored_tokens }}\n"
        "{{ 'a`b' | code }}\n{{ 'a: b' | fence('yaml') }}\n"
    )
    card = render_card(folder, template=template)
    found = read(folder / "eval.json")["divergence"]["kl_divergence"]
    assert numbers(card.split("---\n")[2].splitlines()[1])[0] == pytest.approx(found["value"], rel=5e-3)
    assert "2.52 MB 2.52 M 8,382\n<code>a&#96;b</code>\n```yaml\na: b\n```\n" in card


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% if %}", r"t\.j2:1: is no Jinja template: Expected an expression"),
        ("a\n{{ b", r"t\.j2:2: is no Jinja template: unexpected end of template"),
        ("{{ manifst }}", r"t\.j2: names what is not there: 'manifst' is undefined\nhint: variables: base, benchmark"),
        ("{{ manifest.recpe }}", r"names what is not there: 'dict object' has no attribute 'recpe'"),
        ("{{ ''.__class__.__mro__ }}", r"reaches for what the sandbox forbids: access to attribute '__class__'"),
        ("{{ manifest.update({}) }}", r"reaches for what the sandbox forbids"),
        ("{{ manifest.layers.append(1) }}", r"reaches for what the sandbox forbids"),
        ("{{ cycler.__init__.__globals__ }}", r"reaches for what the sandbox forbids"),
        ("{{ 'a' * 10 ** 9 }}", r"reaches for what the sandbox forbids: the operator \* is for numbers"),
        ("{{ 9 ** 999999 }}", r"reaches for what the sandbox forbids: the operator \*\* is for numbers"),
        ("{{ '%1000000000d' % 1 }}", r"reaches for what the sandbox forbids: the operator % is for numbers"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", r"fails: OverflowError: Range too big"),
        ("{% include '/etc/passwd' %}", r"includes '/etc/passwd'; only 'card\.md\.j2' is there"),
        ("{{ 1 / 0 }}", r"fails: ZeroDivisionError"),
        ("{{ title | nothing }}", r"is no Jinja template: No filter named 'nothing'"),
        ("{{ title | interval_text }}", r"fails: ValidationError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"fails: RecursionError"),
        ("---\nx: y\n", r"t\.j2: begins with '---' and no second such line"),
        ("---\nx: [\n---\n", r"makes front matter that is not YAML"),
        ("---\n- x\n---\n", r"makes front matter that is no list of fields"),
        ("x" * 300_000, r"has 300,000 characters, at most 262,144 are accepted"),
    ],
)
def test_a_template_that_fails_says_why(tmp_path: Path, text: str, message: str) -> None:
    folder = artifact(tmp_path / "x")
    template = tmp_path / "t.j2"
    template.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        write_card(folder, template=template)
    assert caught.value.hint
    assert not (folder / "README.md").exists()


def test_a_template_that_takes_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcompress.publishing.sandbox.TIME_LIMIT_S", 0.3)
    template = tmp_path / "t.j2"
    template.write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(UsageError, match=r"t\.j2: takes more than 0\.3 s"):
        render_card(artifact(tmp_path / "x"), template=template)


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "x")
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, message in (("none", "no such template"), ("binary", "is not UTF-8"), ("x", "cannot be read: Is a dir")):
        with pytest.raises(UsageError, match=message):
            render_card(folder, template=tmp_path / name)


# --- the command


def test_the_command_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmcompress.cli import run

    folder = artifact(tmp_path / "x")
    (folder / "bench.json").unlink()
    assert run(["card", str(folder)]) == 0
    told = capsys.readouterr().out
    assert f"{folder / 'README.md'}: written, " in told
    assert ", from llmcompress.json and eval.json\n" in told
    assert f"Not measured; llmcompress bench {folder} puts bench.json there" in told
    (folder / "eval.json").write_text("{")
    assert run(["card", str(folder), "--repo-id", "acme/x", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] is True
    assert report["unused_reports"].keys() == {"eval.json"}
    assert "acme/x" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine")
    assert run(["card", str(folder)]) == 2
    assert "was written or changed by somebody else" in capsys.readouterr().err
    assert run(["card", str(folder), "--overwrite"]) == 0
    assert "eval.json is not used: it is not JSON" in capsys.readouterr().out
    template = tmp_path / "t"
    template.write_text("{{ x }}")
    assert run(["card", str(folder), "--template", str(template)]) == 2
    assert "names what is not there: 'x' is undefined" in capsys.readouterr().err
    assert run(["card", str(tmp_path)]) == 4


def test_accuracy_control_is_accounted_for(tmp_path: Path) -> None:
    def controlled(manifest: dict[str, Any], evaluation: dict[str, Any], benchmark: dict[str, Any]) -> None:
        manifest["activations"]["accuracy"] = {
            "metric": "kl_divergence",
            "max_drop": 0.01,
            "met": True,
            "validation": {
                "dataset": "held|out.txt",
                "num_windows": 7,
                "seq_len": 64,
                "seed": 0,
                "token_ids_sha256": "0" * 64,
            },
            "reference": 0.0,
            "drop_quantized": 0.0312,
            "drop": 0.00871,
            "reverted": [
                {"operations": ["a.down_proj"], "added_bytes": 1234, "drop_before": 0.0312, "drop_after": 0.0087},
                {"operations": [], "added_bytes": 0, "drop_before": 0.0087, "drop_after": 0.0086},
            ],
        }

    text = render_card(artifact(tmp_path / "out", controlled, "demo-int8-ptq-ov"))
    (sentence,) = [line for line in text.splitlines() if line.startswith("Accuracy control")]
    assert "kept `kl_divergence` on 7 held-out windows" in sentence
    assert "it lost 0.00871 of 0.01 allowed, and 0.0312 with everything quantized" in sentence
    assert "| `a.down_proj` | 1,234 bytes | 0.0312 | 0.0087 |" in text
    assert "| quantizers alone | 0 bytes | 0.0087 | 0.0086 |" in text
