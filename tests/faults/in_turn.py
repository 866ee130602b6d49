"""Commands one after another in this process, whose libraries are imported once: ``in_turn.py FILE``, a JSON list.

What became of each is a line of JSON on stdout: its exit code and what it wrote to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from interception import run_here
from world_fixture import without_workers


def main() -> None:
    """Run them."""
    lines = sys.stdout
    with pytest.MonkeyPatch.context() as patch:
        without_workers(patch)
        for arguments in json.loads(Path(sys.argv[1]).read_bytes()):
            ended = run_here(arguments)
            print(json.dumps([ended.returncode, ended.stderr]), file=lines, flush=True)


if __name__ == "__main__":
    main()
