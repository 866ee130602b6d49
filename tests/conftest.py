"""What every test may use: models, texts, and a cache of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the caches of the person who runs it."""
    patch = pytest.MonkeyPatch()
    # How wide reports are must not depend on where the tests run.
    patch.delenv("COLUMNS", raising=False)
    # Nor what they print on how fast the machine is: no lines of progress in pipes.
    patch.setenv("LLMCOMPRESS_PROGRESS_S", "86400")
    # What a test asks for is what runs, and a second conversion would double the time of each.
    patch.setenv("LLMCOMPRESS_GRAPH_CACHE", "off")
    patch.setenv("LLMCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HOME", os.environ.get("HF_HOME") or str(tmp_path_factory.mktemp("hf-home")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_children() -> None:
    """Ctrl-C and hang-up are ignored by what nohup or a shell's background job starts, and by its children."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def ref_model() -> Path:
    """The trained 8.4 M parameter reference checkpoint."""
    return _shared("models/ref-llama-8m")


@pytest.fixture(scope="session")
def calibration_text() -> Path:
    """A real text for calibration."""
    return _shared("data/calibration-wiki.txt")


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """A real text for evaluation, which nothing was calibrated on."""
    return _shared("data/wikitext2-test-part1.txt")


@pytest.fixture(scope="session")
def artifact(ref_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes an artifact of the reference checkpoint by a name of ``evaluation_fixture.recipes``, each once."""
    from evaluation_fixture import recipes

    import llmcompress

    directory = tmp_path_factory.mktemp("artifacts")
    loaded = llmcompress.load(ref_model)

    def make(name: str) -> Path:
        output = directory / name
        if not output.exists():
            llmcompress.compress(loaded, recipes()[name], output)
        return output

    return make


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The checkpoint that comes with the package."""
    return ROOT / "llmcompress" / "cli" / "demo_checkpoint"


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there: the reference models and texts lie beside the repository")
    return path
