"""How the package reaches a machine: the wheel, the install script, and the image that is that script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make dist` builds it."""
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(output), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = output.glob("llmcompress-*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_data_alone(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "llmcompress"], cwd=ROOT, capture_output=True, text=True, check=True)
    placed = {"optimum/commands/register/register_llmcompress.py"}
    assert packed - placed == set(tracked.stdout.split()) - {"llmcompress/cli/optimum_command.py"}
    assert placed <= packed


def test_the_description_has_no_link_that_is_dead_on_pypi(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [each for each in packed.namelist() if each.endswith(".dist-info/METADATA")]
        headers, _, text = packed.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)
    assert "<h1>llmcompress</h1>" in html
    assert [each for each in re.findall(r'(?:href|src)="([^"]*)"', html) if not each.startswith("https://")] == []
    said = re.findall(r"\[([^\]]+)\]\((?:docs/|#|CONTRIBUTING)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(said) > 20
    assert [each for each in said if each not in text] == []


def test_the_wheel_runs_the_demo_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "folder"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "120"}
    run = subprocess.run(
        [sys.executable, "-m", "llmcompress", "demo"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^int8 .*equivalent", run.stdout, re.MULTILINE)
    where = "import llmcompress; print(llmcompress.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=folder, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(site)


def test_the_image_is_the_install_script(tmp_path: Path) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    installing = [line for line in lines if (line.startswith("RUN") and "pip" in line) or "install.sh" in line]
    assert len(installing) == 1
    assert "scripts/install.sh /opt/llmcompress " in installing[0]
    assert lines.index("USER llmcompress") < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))


def test_the_install_script_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    script = ["sh", str(ROOT / "scripts/install.sh"), str(tmp_path / "venv")]
    run = subprocess.run(script, env={**os.environ, "PYTHON": "false"}, capture_output=True, text=True)
    assert run.returncode == 1
    assert "false is no Python 3.11 or newer with venv" in run.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_install_script_makes_what_a_user_needs_and_no_more(tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "scripts/install.sh"), "venv"], cwd=tmp_path, check=True)
    python = tmp_path / "venv/bin/python"
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True)
    names = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert "openvino-genai" in names
    assert names.isdisjoint({"ray", "lm-eval", "lm_eval", "pytest", "mypy", "ruff", "hypothesis"})
    run = subprocess.run([tmp_path / "venv/bin/llmcompress", "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_builds_and_runs() -> None:
    docker = shutil.which("docker") or shutil.which("podman")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no container daemon runs on this machine")
    if subprocess.run([docker, "pull", "python:3.12-slim"], capture_output=True).returncode:
        pytest.skip("the base image python:3.12-slim cannot be fetched from here")
    subprocess.run([docker, "build", "--tag", "llmcompress-test", str(ROOT)], check=True)
    run = subprocess.run([docker, "run", "--rm", "llmcompress-test", "recipes"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "int4-awq-se" in run.stdout
