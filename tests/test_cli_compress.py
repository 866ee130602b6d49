"""The command as a person meets it: its report, its terminal, its errors, and the same bytes anywhere."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import compress_fixture
import pytest
from compress_fixture import STAGES, Undisturbed, at_once, reproducible, run, tree, undisturbed

from llmcompress import cli

__all__ = ["undisturbed"]


def _manifest(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((output / "llmcompress.json").read_bytes())
    return manifest


def test_a_failure_of_the_runs_that_these_tests_share_shows_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("the first failure")

    for name in ("_second", "_on_a_terminal"):
        monkeypatch.setattr(compress_fixture, name, fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the first failure"):
            compress_fixture._undisturbed(tmp_path)


def test_json_is_exactly_the_manifest(undisturbed: Undisturbed) -> None:
    assert json.loads(undisturbed.json_text) == _manifest(undisturbed.output)
    assert undisturbed.json_text.isascii()


def test_an_override_reaches_model_manifest_and_recipe(undisturbed: Undisturbed) -> None:
    import yaml

    manifest = _manifest(undisturbed.output)
    assert manifest["recipe"]["weights"]["group_size"] == 32
    assert {layer["group_size"] for layer in manifest["layers"] if layer["mode"] == "int4_asym"} == {32}
    assert yaml.safe_load((undisturbed.output / "recipe.yaml").read_text())["weights"]["group_size"] == 32


def test_the_terminal_shows_each_stage_done_within_80_columns(undisturbed: Undisturbed) -> None:
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", undisturbed.terminal)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", uncoloured)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) <= 80
    ended = [line for line in lines if line.startswith("✓")]
    assert [stage for stage in STAGES if not any(line.startswith(f"✓ {stage} ") for line in ended)] == []
    sizes = [line for line in ended if line.startswith("✓ check weights")]
    assert re.search(r"━+ 657 kB of 657 kB +\d+(\.\d)? s$", sizes[-1])
    # Something is seen while the libraries are imported, and no library speaks in between.
    assert any(re.match(r"\S read the configuration ", line) and not line.startswith("✓") for line in lines)
    assert [line for line in lines if line and not re.match(r"\S ", line)] == []


def test_the_report_goes_to_stdout_and_a_pipe_gets_lines_of_progress_alone(undisturbed: Undisturbed) -> None:
    report = undisturbed.report
    assert report.returncode == 0, report.stderr
    assert all(re.search(r", [\d. hmins]+s( left)?$", line) for line in report.stderr.splitlines())
    name = undisturbed.other_output.name
    lines = [" ".join(line.split()) for line in report.stdout.splitlines()]
    assert max(map(len, report.stdout.splitlines())) <= 120
    output_bytes = sum(len(content) for path, content in tree(undisturbed.other_output).items())
    manifest = _manifest(undisturbed.other_output)
    context = json.loads((undisturbed.other_output / "config.json").read_text())["max_position_embeddings"]
    assert output_bytes - manifest["size_bytes"] == (undisturbed.other_output / "llmcompress.json").stat().st_size
    for line in (
        f"Model {name} (LlamaForCausalLM, 328,064 parameters)",
        f"Source {undisturbed.other_source} (bf16)",
        f"Size 657 kB -> {manifest['size_bytes'] / 1e3:.0f} kB ({manifest['size_bytes'] / 657_376:.0%})",
        f"Bits per weight {manifest['bits_per_weight']:.2f}",
        "Tokenizer converted, compared equal",
        f"Written to {name}",
        # The default's windows of 512 tokens are longer than this model's context.
        f"Next: llmcompress eval '{name}' --reference '{undisturbed.other_source}' --seq-len {context}",
    ):
        assert line in lines, line
    assert any(re.fullmatch(r"int4_asym 32 7 196,608 60.0% 11\d kB", line) for line in lines)
    assert any(re.fullmatch(r"int8_asym per channel 2 131,072 40.0% 13\d kB", line) for line in lines)
    assert not any(first == second == "" for first, second in pairwise(lines))


def test_the_same_bytes_from_another_place_name_and_working_directory(undisturbed: Undisturbed) -> None:
    first, second = reproducible(undisturbed.output), reproducible(undisturbed.other_output)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    for name in ("llmcompress.json", "openvino_model.xml", "recipe.yaml"):
        assert str(undisturbed.checkpoint.parent) not in (undisturbed.output / name).read_text()
    assert undisturbed.other_source not in (undisturbed.other_output / "llmcompress.json").read_text()


def test_a_second_run_to_the_same_output_is_told_to_wait(undisturbed: Undisturbed) -> None:
    assert undisturbed.rival.returncode == 9, undisturbed.rival.stderr
    assert undisturbed.rival.stdout == ""
    # It was asked for JSON.
    error = json.loads(undisturbed.rival.stderr.splitlines()[-1])["error"]
    assert error["where"] == str(undisturbed.output)
    assert re.fullmatch(r"another run \(process \d+.*\) is writing this output", error["message"])
    assert error["hint"] == "wait until it ends, or choose another output directory"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["-r", "int5"], "'int5': no packaged recipe of this name; accepted: ", "did you mean int8?"),
        (
            ["-r", "int4", "--set", "weights.group=64"],
            "--set weights.group: unknown key 'group'",
            "did you mean group_size?",
        ),
        (["-r", "int8", "--set", "weights.group_size=64"], "", ""),
        (["-r", "no-such.yaml"], "'no-such.yaml': no such file", ""),
    ],
)
def test_a_wrong_recipe_ends_with_2_and_says_what_is_meant(
    arguments: list[str], error: str, hint: str, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compress", str(undisturbed.checkpoint), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith(f"error: {error}")
    assert second.startswith(f"hint: {hint}")


def test_a_dry_run_writes_nothing_and_a_broken_model_is_named(undisturbed: Undisturbed, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(undisturbed.checkpoint, broken)
    _remove_tensor(broken / "model.safetensors", "model.layers.0.mlp.up_proj.weight")
    (tmp_path / "dry").mkdir()
    (tmp_path / "wet").mkdir()
    dry, wet = at_once(
        lambda: run("compress", undisturbed.checkpoint, "-r", "int4", "--dry-run", cwd=tmp_path / "dry"),
        lambda: run("compress", broken, "-r", "int4", "-o", "out", cwd=tmp_path / "wet"),
    )
    # What takes more than a few seconds says so.
    assert dry.returncode == 0, dry.stderr
    assert all(re.search(r", [\d. hmins]+s$", line) for line in dry.stderr.splitlines())
    assert list((tmp_path / "dry").iterdir()) == []
    lines = [" ".join(line.split()) for line in dry.stdout.splitlines()]
    assert f"Source {undisturbed.checkpoint} (328,064 parameters)" in lines
    assert "Fits yes" in lines
    assert "int4_asym 128 7 196,608 60.0% 102 kB" in lines

    assert (wet.returncode, wet.stdout) == (4, ""), wet.stderr
    error, hint = wet.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert "model.layers.0.mlp.up_proj.weight" in error
    assert hint.startswith("hint: ")
    assert list((tmp_path / "wet").iterdir()) == []


def _remove_tensor(path: Path, name: str) -> None:
    """Leave a tensor out of a file, which stays valid: its bytes are renamed, not cut out."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    # A name of the same length keeps every offset.
    assert header.count(f'"{name}"'.encode()) == 1
    header = header.replace(f'"{name}"'.encode(), f'"{name[:-1]}s"'.encode())
    path.write_bytes(content[:8] + header + content[8 + length :])
