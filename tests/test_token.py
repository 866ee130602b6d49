"""A canary token that a server echoes appears nowhere: in no output, no file, no list of processes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, Fault, environment, new_repo, running
from push_fixture import add_reports, card, files_of, make_artifact

TOKEN = "hf_CanaryTokenCanaryTokenCanaryToken01"
SECRETS = [
    TOKEN.encode(),
    TOKEN[:12].encode(),
    base64.b64encode(TOKEN.encode()),
    base64.b64encode(f"Bearer {TOKEN}".encode())[:-4],
    base64.b64encode(f"user:{TOKEN}".encode())[8:-4],
]
CARDS = f"""
import sys, types
module = types.ModuleType("llmcompress.publishing.card")
sys.path.insert(0, {str(Path(__file__).parent)!r})
def render_card(directory, *, repo_id=None, template=None, base_model=None, license=None):
    from push_fixture import card
    return card(directory, repo_id)
module.render_card = render_card
sys.modules["llmcompress.publishing.card"] = module
from llmcompress.cli import main
main()
"""


def echo(status: int) -> Fault:
    """A refusal that repeats the token in every place that a client could print."""
    headers = {
        "X-Error-Message": f"Invalid credentials in Authorization header: Bearer {TOKEN}",
        "X-Request-Id": TOKEN,
        "X-HF-Warning": f"unauthenticated; {TOKEN}",
        "X-Amz-Cf-Id": TOKEN,
        "WWW-Authenticate": f'Bearer token="{TOKEN}"',
        "Retry-After": "0",
    }
    if status == 302:
        headers["Location"] = f"/loop?token={TOKEN}"
    said = {"error": f"bad token {TOKEN}", "errors": [{"message": TOKEN}], "warnings": [{"message": TOKEN}]}
    return Fault("status", times=-1, status=status, headers=headers, body=json.dumps(said).encode())


def run(hub: FakeHub, home: Path, *arguments: str) -> tuple[int, bytes]:
    """One command in a process of its own; its output, and what anybody could see of it while it ran."""
    variables = {**os.environ, **environment(hub, home / "cache", TOKEN), "HF_HOME": str(home / "hf")}
    variables |= {"LLMCOMPRESS_CACHE": str(home / "ours"), "PYTHONPATH": str(Path(__file__).parents[1])}
    variables["HF_HUB_DOWNLOAD_TIMEOUT"] = "2"
    worker = subprocess.Popen(
        [sys.executable, "-c", CARDS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        cwd=home,
    )
    listed = Path(f"/proc/{worker.pid}/cmdline")
    seen = listed.read_bytes() if listed.exists() else b""
    output = worker.communicate(timeout=120)[0]
    return worker.returncode, seen + output


def leaks(home: Path, output: bytes) -> list[str]:
    found = [f"output: {output!r}" for secret in SECRETS if secret in output]
    for name, content in files_of(home).items():
        found += [name for secret in SECRETS if secret in content or secret in name.encode()]
    return found


_RARELY = (302, 403, 404, 412, 503)
COMMANDS = [
    ("push", "model", "acme/model", "-v"),
    ("compress", "acme/model", "-r", "none", "-o", "out", "-v"),
    pytest.param(("verify", "acme/model", "-v", "--json"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("status", [401, *(pytest.param(code, marks=pytest.mark.slow) for code in _RARELY)])
def test_the_token_appears_nowhere(tmp_path: Path, arguments: tuple[str, ...], status: int) -> None:
    add_reports(make_artifact(tmp_path / "model"))
    with running(FakeHub()) as hub:
        hub.repos["acme/model"] = new_repo({"config.json": b"{}"})
        hub.inject(echo(status))
        code, output = run(hub, tmp_path, *arguments)
        assert f"Bearer {TOKEN}" in hub.authorizations
    assert code == 5, output
    assert b"error: " in output
    assert leaks(tmp_path, output) == []


def test_neither_when_everything_works(tmp_path: Path) -> None:
    model = add_reports(make_artifact(tmp_path / "model"))
    with running(FakeHub(cdn=True)) as hub:
        code, output = run(hub, tmp_path, "push", "model", "acme/model", "-v")
        assert code == 0, output
        assert leaks(tmp_path, output) == []
        assert TOKEN not in str(hub.repos["acme/model"].commits)
        code, output = run(hub, tmp_path, "verify", "acme/model", "-v")
        assert code == 0, output
        assert b"acme/model: 3 files, all as the manifest says" in output
    assert leaks(tmp_path, output) == []
    assert (model / "README.md").read_text() == card(model, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "only", ["/create", "/preupload/", "/batch", "/lfs/whole/", "/lfs/verify/", "/commit/", "/tree/"]
)
@pytest.mark.parametrize("status", [400, 403])
def test_the_token_appears_nowhere_at_later_steps(tmp_path: Path, only: str, status: int) -> None:
    make_artifact(tmp_path / "model")
    with running(FakeHub()) as hub:
        fault = echo(status)
        fault.only = only
        hub.inject(fault)
        code, output = run(hub, tmp_path, "push", "model", "acme/model", "-v")
    assert code == 5, output
    assert leaks(tmp_path, output) == []


def test_no_command_takes_a_token() -> None:
    from llmcompress.cli.app import COMMANDS, load_command

    for name in COMMANDS:
        assert not [text for option in load_command(name).params for text in option.opts if text.endswith("token")], (
            name
        )
