"""Every block of code of the README and the docs is run: commands, Python, recipes, plans, templates.

The names that they use are those of ``world_fixture``. By default the commands are parsed by the real command line,
what YAML says is loaded by the real loaders, and what is quick is carried out; the rest is with ``-m slow``.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import ALL, KINDS, PAGES, ROOT, Block, Command, blocks_of, commands_of, of_kind, shape, spans_of
from fake_hub import FakeHub, running, use
from tiny_models import build_checkpoint
from world_fixture import (
    ARTIFACTS,
    SEEING,
    SEES,
    add_picture,
    add_quantized,
    add_vision,
    build_world,
    datasets_are_local,
    hub_of,
    without_workers,
)

import llmcompress
from llmcompress.cli import run
from llmcompress.cli.app import COMMANDS, command, load_command
from llmcompress.data.pictures import read_pictures
from llmcompress.spec.files import load_recipe
from llmcompress.tuning import runtime_profile

QUICK = {"README.md import llmcompress"}
"""Blocks that the default run carries out, by their names."""
ELSEWHERE = {
    "first-run.md $ llmcompress compress HuggingFaceTB/SmolLM2-135M-Instruct -": "tests/test_first_run.py",
    'plans.md pip install "llmcompress[ray]"': "tests/test_cluster.py",
}
"""Blocks that are run by a test of their own: with a terminal, with a cluster."""
OF_ALL = {"--help", "--version", "--install-completion"}
"""Options of the program itself."""
SMALLER = (
    (r"--budget\0\S+?(?=\0|$)", "--budget\00020s"),
    (r"budget: \w+", "budget: 2s"),
    (r"EvalSpec\(", "EvalSpec(num_windows=4, "),
    # A few jobs of a plan, one tuned.
    (r"^run\0sweep.yaml$", "run\0sweep.yaml\0--only\0checkpoint/searched\0--only\0checkpoint/awq-own-text"),
    (r"llama-1b/\*", "llama-1b/int4"),
    (r"^run\0tuned.yaml$", "run\0tuned.yaml\0--only\0*/int4"),
    (r"(?m)^tune: +# .*\n( .*\n)+", ""),
    (r"training\.num_steps=\d+", "training.num_steps=2"),
    (r"num_(steps|samples|windows): \d+", r"num_\1: 4"),
    (r"num_layers: 2", "num_layers: 1"),
)
"""What a run would take hours for, by what it takes seconds for; words are parted by a zero."""
SMALL_RECIPE = [
    f"training.{each}" for each in ("num_samples=8", "num_validation_samples=2", "num_steps=2", "num_validations=1")
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world") / "world")


@pytest.fixture(scope="module")
def hub(world: Path) -> Iterator[FakeHub]:
    with running(hub_of(world)) as served:
        yield served


@pytest.fixture
def here(world: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world as the working directory, with the Hub, and no process beside this one."""
    place = tmp_path / "here"
    shutil.copytree(world, place)
    monkeypatch.chdir(place)
    use(hub.url, tmp_path / "hub", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "pages" * 7)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    # Wide enough for every table, and somebody who is asked and says no.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("llmcompress.cli.progress._can_ask", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n" * 9))
    without_workers(monkeypatch)
    datasets_are_local(monkeypatch, world / "hub.txt")
    return place


def by_name(blocks: list[Block]) -> Any:
    return pytest.mark.parametrize("block", blocks, ids=lambda block: block.name)


def to_run(blocks: list[Block]) -> Any:
    """Each of the blocks as a test, slow unless it is known as quick."""
    chosen = [block for block in blocks if not any(block.name.startswith(each) for each in ELSEWHERE)]
    cases = [pytest.param(each, marks=[] if each.name in QUICK else pytest.mark.slow, id=each.name) for each in chosen]
    return pytest.mark.parametrize("block", cases)


def test_a_block_has_a_kind() -> None:
    assert len(ALL) > 40
    assert [block.place for block in ALL if block.language not in KINDS] == []
    names = [block.name for block in ALL]
    assert {name: names.count(name) for name in QUICK} == dict.fromkeys(QUICK, 1)


@by_name(of_kind("sh", "console", "bash"))
def test_a_command_is_one_that_there_is(block: Block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    if block.language == "bash":
        assert subprocess.run(["bash", "-n"], input=block.text, text=True, check=False).returncode == 0
    assert commands_of(block)
    for each in commands_of(block):
        require_known(each.words)


def require_known(words: list[str]) -> None:
    """A command of ours is parsed; of those of other programs it is looked at what they are given."""
    if words[0] in ("llmcompress", "srun"):
        parse(words[words.index("llmcompress") + 1 :])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"llmcompress\[(\w+)\]", words[2])) <= set(extras), words
    elif words[0] in ("sh", "bash", "python"):
        assert (ROOT / words[1]).is_file(), words
    else:
        assert words == [".", ".venv/bin/activate"]


def parse(words: list[str]) -> None:
    """Have the real command line read a command, without carrying it out."""
    root = command()
    with root.make_context("llmcompress", ["recipes"]) as context:
        name, found, rest = root.resolve_command(context, words)
        while getattr(found, "commands", None):
            name, found, rest = found.resolve_command(context, rest)
        with contextlib.closing(found.make_context(name, rest, parent=context)):
            pass


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_command_in_the_text_is_one_that_there_is(page: Path) -> None:
    """Scripts as well, so that whoever doubts a figure can make it again."""
    everywhere = {flag for name in COMMANDS for flag in flags_of(name)}
    everywhere |= {flag for path in (ROOT / "benchmarks").glob("*.py") for flag in script_flags(path)}
    for span in spans_of(page):
        words = span.removeprefix("python ").split()
        if words[0] == "llmcompress" and len(words) > 1 and words[1] != "...":
            assert words[1] in {*COMMANDS, *OF_ALL}, span
            flags = flags_of(words[1]) if words[1] in COMMANDS else set()
        elif words[0].startswith("--"):
            flags = everywhere
        elif re.match(r"(benchmarks|scripts|tests|examples)/\S+\.(py|sh|yaml)$", words[0]):
            flags = script_flags(ROOT / words[0])
            # A command that is written out is whole.
            assert len(words) == 1 or "..." in words or needed_flags(ROOT / words[0]) <= set(words), span
        else:
            continue
        assert {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= flags | OF_ALL, span


def flags_of(name: str) -> set[str]:
    loaded = load_command(name)
    every = (loaded, *getattr(loaded, "commands", {}).values())
    return {flag for each in every for option in each.params for flag in (*option.opts, *option.secondary_opts)}


def script_flags(path: Path) -> set[str]:
    """The options of a script, and of those next to it that it imports."""
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r'"(--[a-z][a-z-]*)"', text))
    for name in re.findall(r"^from (\w+) import", text, re.MULTILINE):
        beside = path.with_name(f"{name}.py")
        found |= script_flags(beside) if beside.is_file() else set()
    # argparse makes the negative form itself.
    return found | {flag.replace("--", "--no-", 1) for flag in found if "BooleanOptionalAction" in text}


def needed_flags(path: Path) -> set[str]:
    """The options without which a script does nothing; of one with several parts none is known."""
    text = path.read_text(encoding="utf-8")
    return set() if "add_subparsers" in text else set(re.findall(r'"(--[a-z][a-z-]*)", .*required=True', text))


@by_name(of_kind("yaml"))
def test_a_recipe_or_a_plan_is_accepted(block: Block, world: Path, tmp_path: Path) -> None:
    place = tmp_path / "here"
    shutil.copytree(world, place)
    load(block, place)


def load(block: Block, folder: Path, name: str = "") -> Any:
    """What the block says, by the loader of a recipe or a plan, as a file in a folder."""
    said = yaml.safe_load(block.text)
    path = folder / (name or file_of(block))
    path.write_text(block.text, encoding="utf-8")
    if "models" in said:
        return llmcompress.load_plan(path)
    if "name" not in said:
        # A part of a recipe, with what it cannot be without.
        rest = {"method": "activations", "calibration": {"dataset": "texts.jsonl"}}
        rest = rest if "activations" in said else {"weights": {"mode": "int4_sym", "group_size": 64, "awq": True}}
        path.write_text(yaml.safe_dump({"name": "part", **rest, **said}))
    return load_recipe(path)


def file_of(block: Block) -> str:
    """The name of the file that a block of YAML is: in its first line, or by the recipe's own."""
    named = re.match(r"# (\S+\.yaml)", block.text)
    return named[1] if named else f"{yaml.safe_load(block.text).get('name', 'part')}.yaml"


@by_name(of_kind("jinja"))
def test_a_template_makes_a_card(block: Block, world: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.md.j2"
    template.write_text(block.text, encoding="utf-8")
    card = llmcompress.render_card(world / "model-int4-ov", template=template)
    assert card.startswith("---\n")
    fixed = [line for line in block.text.splitlines() if line and not re.search(r"\{[{%]|^---$", line)]
    assert [line for line in fixed if line not in card] == []


@by_name(of_kind("json"))
def test_questions_about_pictures_are_read(block: Block, tmp_path: Path) -> None:
    asked = [json.loads(line) for line in block.text.splitlines()]
    for row in asked:
        add_picture(tmp_path / row["image"])
    file = tmp_path / "questions.jsonl"
    file.write_text(block.text, encoding="utf-8")
    assert [each.question for each in read_pictures(str(file)).questions] == [row["question"] for row in asked]


@by_name(of_kind("python"))
def test_python_imports_what_there_is(block: Block) -> None:
    compile(block.text, block.place, "exec")
    names = re.findall(r"\bllmcompress\.(\w+)", block.text)
    names += re.findall(r"\w+", " ".join(re.findall(r"^from llmcompress import ([\w, ]+)", block.text, re.MULTILINE)))
    assert set(names) <= set(llmcompress.__all__)


@to_run(of_kind("sh", "console"))
def test_commands_do_what_they_say(
    block: Block, here: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(block, here, hub, monkeypatch)
    for each in commands_of(block):
        if "--profile" in each.words and not (here / each.words[-1]).exists():
            # Here nothing was faster beyond noise that a model cannot hold.
            report = llmcompress.TuneReport.model_validate_json((here / "model-int4-ov" / "tune.json").read_bytes())
            assert runtime_profile(report) is None
        elif each.words[0] == "llmcompress":
            # Commands of one block may be several ways to one output.
            again = ["--overwrite"] if each.words[1] in ("compress", "search") else []
            code = run([*smaller(each.words[1:]), *again])
            printed = capsys.readouterr()
            refused = "[y/N]" in "".join(each.output)
            assert code == (2 if refused else 0), f"{block.place}: {each.words}\n{printed.err}"
            compare(each, printed.err + printed.out)


def smaller(words: list[str]) -> list[str]:
    """A command that takes less time, but for that as it is."""
    text = "\0".join(words)
    learns = re.search("-r\0int4-(learned|distilled)", text)
    # A budget decides the number of steps.
    more = [each for each in SMALL_RECIPE if not ("num_steps" in each and re.search("num_steps|--budget", text))]
    return small_text(text).split("\0") + [part for each in more for part in ("--set", each) if learns]


def small_text(text: str) -> str:
    for pattern, instead in SMALLER:
        text = re.sub(pattern, instead, text)
    return text


def prepare(block: Block, here: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what the page's block needs besides the world into the working directory."""
    if block.page == "quantized.md":
        add_quantized(here)
    if block.page == "vision.md" or any(name in block.text for name in SEEING.values()):
        add_vision(hub, here / "seeing")
        add_picture(here / "picture.png")
        if block.language == "python":
            assert run(["compress", SEES, "-r", "int4"]) == 0
    if "does not divide" in block.text:
        shutil.rmtree(here / "MODEL")
        build_checkpoint(here / "MODEL", num_hidden_layers=2, intermediate_size=352)
    if re.search(r"\b(compress|search)\(", block.text):
        for name in ARTIFACTS:
            shutil.rmtree(here / name) if f'"{name}"' in block.text else None
    page = next(path for path in PAGES if path.name == block.page)
    for other in blocks_of(page):
        if other.language == "yaml":
            text = small_text(other.text)
            if block.language == "python" and "search:" in text:
                text = yaml.safe_dump(yaml.safe_load(text) | {"models": ["./checkpoint"], "recipes": ["int8"]})
            load(other._replace(text=text), here, file_of(other))


def compare(command: Command, printed: str) -> None:
    """What a page shows of a report has the form of the report, in its order; the figures are other ones."""
    found = iter(shape(printed.splitlines()))
    for shown in shape(command.output):
        assert any(set(shown) <= set(line) for line in found), f"{shown} is not in:\n{printed}"


@to_run(of_kind("python"))
def test_python_does_what_it_says(block: Block, here: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(block, here, hub, monkeypatch)
    exec(compile(small_text(block.text), block.place, "exec"), given(block))


def given(block: Block) -> dict[str, Any]:
    """What the page says that is the reader's own."""
    if "Trainer(" not in block.text:
        return {}
    from transformers import TrainingArguments

    arguments = TrainingArguments("trained", max_steps=1, per_device_train_batch_size=1, report_to=[])
    return {"arguments": arguments, "rows": [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]}
