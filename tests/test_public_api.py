import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmcompress

ROOT = Path(__file__).parent.parent
HEAVY = {
    "accelerate", "datasets", "huggingface_hub", "nncf", "numpy", "openvino", "openvino_tokenizers", "optimum",
    "pandas", "pyarrow", "safetensors", "tokenizers", "torch", "transformers",
}  # fmt: skip


def modules_after(program: str) -> set[str]:
    """Names of the top-level modules that a program leaves imported, in a process of its own."""
    program += "\nimport sys; sys.stderr.write(' '.join({name.split('.')[0] for name, m in sys.modules.items() if m}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def test_importing_the_package_imports_no_heavy_library() -> None:
    assert modules_after("import llmcompress") & (HEAVY | {"pydantic", "typer", "rich", "psutil"}) == set()


def test_the_names_that_need_no_model_import_no_heavy_library() -> None:
    names = "Recipe, load_recipe, verify, CompressionReport, ModelError"
    assert modules_after(f"from llmcompress import {names}") & HEAVY == set()


def test_the_names_are_sorted_and_all_there() -> None:
    assert llmcompress.__all__ == sorted(llmcompress.__all__)
    assert dir(llmcompress) == llmcompress.__all__
    for name in llmcompress.__all__:
        assert getattr(llmcompress, name) is not None
    assert {"load", "compress", "Recipe", "load_recipe", "verify", "CompressionReport", "__version__"} <= set(
        llmcompress.__all__
    )


def test_type_checkers_see_each_name_from_where_it_is_imported() -> None:
    source = Path(llmcompress.__file__).read_text()
    pairs = re.findall(r"^    from (\S+) import (\w+) as \2$", source, re.MULTILINE)
    assert {name: module for module, name in pairs} == llmcompress._HOME


def test_every_error_is_public() -> None:
    from llmcompress import errors

    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and not name.startswith("_")}
    assert defined <= set(llmcompress.__all__)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        AttributeError,
        match=r"module 'llmcompress' has no attribute 'quantize'; it has .*compress, evaluate, export_trained, load",
    ):
        llmcompress.quantize  # type: ignore[attr-defined]  # noqa: B018
