"""The notebooks of ``examples/`` run from the first cell to the last, and are stored without what they print."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import llmcompress

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SEES = "picture_and_question"
"""The one whose model has eyes; a tiny one stands for it."""


def cells_of(notebook: Path, kind: str = "code") -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def by_name(notebooks: list[Path]) -> Any:
    return pytest.mark.parametrize("notebook", notebooks, ids=lambda path: path.stem)


@by_name(NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs_and_names_what_there_is(notebook: Path) -> None:
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    assert [cell for cell in stored["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
    text = "\n\n".join(cells_of(notebook))
    compile(text, notebook.name, "exec")
    assert set(re.findall(r"\bllmcompress\.(\w+)", text)) - {"data", "cli"} <= set(llmcompress.__all__)
    assert cells_of(notebook, "markdown")[0].startswith("# ")
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert f"../examples/{notebook.name}" in page


@pytest.mark.slow
def test_the_first_one_runs_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run_here(ROOT / "examples" / "first_model.ipynb")
    kinds = [type(value).__name__ for value in shown]
    assert kinds == ["CompressionReport", "EvalReport", "BenchReport", "CardReport"]
    assert llmcompress.verify("first-model-int4").ok


def run_here(notebook: Path) -> list[Any]:
    """Carry out the cells and return what a kernel would show below each."""
    names: dict[str, Any] = {}
    shown = []
    for cell in cells_of(notebook):
        body = ast.parse(cell).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), notebook.name, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), notebook.name, "eval"), names))
    return [value for value in shown if value is not None]


@pytest.mark.slow
@by_name(NOTEBOOKS)
def test_a_notebook_runs_in_a_kernel(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    if notebook.stem == SEES:
        from vision_fixture import build_vision

        monkeypatch.setenv("MODEL", str(build_vision("gemma3", tmp_path / "seeing")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    work = tmp_path / "work"
    work.mkdir()
    document = nbformat.read(notebook, as_version=4)
    nbformat.validate(document)
    done = nbclient.NotebookClient(document, timeout=900, resources={"metadata": {"path": str(work)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert any("text/html" in output.get("data", {}) for output in outputs)
