"""Run examples/first-run.sh in a terminal of 80 columns, with the Hub of the tests, and keep what it shows in the docs.

python tests/first_run.py    # rewrites docs/first-run.md; CHECKPOINT=DIR takes what benchmarks/smollm2.py DIR has made

"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from fake_hub import FakeHub, account, environment, new_repo, running
from terminal_fixture import LLMCOMPRESS, Shown, in_terminal

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "first-run.sh"
PAGE = ROOT / "docs" / "first-run.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOKEN = "hf_" + "firstrun" * 4
CARD = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n"

TEXT = """# The first run

What [examples/first-run.sh](../examples/first-run.sh) shows in a terminal of 80 columns: from an installed clone to a \
model on the Hub with its card.

```bash
{script}```

The page is written by `python tests/first_run.py`. The model is the copy that `benchmarks/smollm2.py` makes of \
{model}, and the Hub is the one of the tests, on this machine; yours is huggingface.co, unless `HF_ENDPOINT` names \
another. The machine was busy with other work: nothing here says how fast anything is.

```console
{output}
```
"""


def first_run(hub: FakeHub, model: str, folder: Path) -> Shown:
    """Carry out the script in ``folder`` as a user who is logged in; ``llmcompress`` is the one of these tests."""
    tools = folder / "tools"
    tools.mkdir(parents=True)
    command = tools / "llmcompress"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(LLMCOMPRESS)} "$@"\n')
    command.chmod(0o755)
    work = folder / "work"
    work.mkdir()
    found = environment(hub, folder / "hub", TOKEN) | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "LLMCOMPRESS_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "home"),
    }
    return in_terminal(["bash", SCRIPT, model], 80, cwd=work, environment=found)


def hub_with(model: str, checkpoint: Path) -> FakeHub:
    """A Hub that holds a checkpoint with a card; the account is acme's."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    return FakeHub(repos={model: new_repo({"README.md": CARD, **files})}, account=account())


def page_of(shown: Shown) -> str:
    """The docs' page of a run."""
    return TEXT.format(script=SCRIPT.read_text(), model=MODEL, output=shown.text.strip("\n"))


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory(prefix="first-run-") as scratch:
        checkpoint = Path(os.environ.get("CHECKPOINT") or Path(scratch) / "checkpoint")
        if not checkpoint.is_dir():
            subprocess.run([sys.executable, ROOT / "benchmarks" / "smollm2.py", checkpoint], check=True)
        with running(hub_with(MODEL, checkpoint)) as hub:
            shown = first_run(hub, MODEL, Path(scratch))
    if shown.exit_code:
        sys.exit(f"the script ended with exit code {shown.exit_code}:\n{shown.text}")
    PAGE.write_text(page_of(shown))
    print(PAGE)


if __name__ == "__main__":
    main()
