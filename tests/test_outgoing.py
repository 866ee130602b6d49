"""What leaves a directory for the Hub, and what never does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from push_fixture import add_reports, evaluation, files_of, make_artifact, tuning

from llmcompress.artifact import Measurements, read_measurements, replace_report, write_report
from llmcompress.errors import SecurityError, UsageError
from llmcompress.hub.upload import Outgoing
from llmcompress.publishing.outgoing import (
    benchmark_scores,
    current_card,
    kept_card,
    model_files,
    require_no_token,
)
from llmcompress.report.evaluation import TaskScore

MINE = "hf_shortbutmine"
LONG = b"hf_" + b"aZ09" * 7 + b"bc"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", MINE)
    return add_reports(make_artifact(tmp_path / "made"))


def bytes_of(files: dict[str, Outgoing]) -> dict[str, bytes]:
    """The content of each, whose size and hash are those that are stated."""
    found = {name: each.content if isinstance(each.content, bytes) else each.content.read_bytes()
             for name, each in files.items()}  # fmt: skip
    assert {name: (each.size_bytes, each.sha256) for name, each in files.items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in found.items()
    }
    return found


def test_what_the_manifest_lists_and_the_reports_leave(made: Path) -> None:
    expected = files_of(made)
    for name in ("notes.txt", "README.md", ".env"):
        (made / name).write_bytes(b"of a person")
    assert bytes_of(model_files(made, read_measurements(made))) == expected
    assert {"eval.json", "bench.json", "llmcompress.json", "tokenizer/vocab.json"} <= expected.keys()


def test_reports_of_other_bytes_stay(made: Path) -> None:
    write_report(made, "eval.json", evaluation(made, digest="0" * 64))
    write_report(made, "tune.json", tuning(made))
    leaving = model_files(made, read_measurements(made))
    assert {"eval.json", "bench.json", "tune.json"} & leaving.keys() == {"bench.json", "tune.json"}


def test_large_files_go_by_their_paths(tmp_path: Path) -> None:
    limit = 16 << 20
    more = {"a.json": b"x" * limit, "b.json": b"x" * (limit + 1)}
    made = make_artifact(tmp_path / "made", more=more)
    leaving = model_files(made, read_measurements(made))
    assert isinstance(leaving["a.json"].content, bytes)
    assert leaving["b.json"].content == made / "b.json"
    assert bytes_of(leaving) == files_of(made)


# --- tokens


@pytest.mark.parametrize(
    "content", [LONG, b"x" + LONG + b"x", b"{" + MINE.encode() + b"}", b"\xff\0" + LONG], ids=["a", "b", "mine", "c"]
)
def test_a_file_with_a_token_does_not_leave(made: Path, content: bytes) -> None:
    with pytest.raises(
        SecurityError, match=r"^a\.txt: it holds an access token of the Hub; nothing was sent\n"
    ) as caught:
        require_no_token("a.txt", content)
    assert "revoke that token at https://huggingface.co/settings/tokens" in caught.value.hint
    assert MINE not in str(caught.value)
    assert LONG.decode() not in str(caught.value)


def test_what_only_looks_like_a_token_leaves(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (LONG[:-1], LONG.replace(b"_", b"-"), MINE[:-1].encode(), b""):
        require_no_token("a.txt", content)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    require_no_token("a.txt", MINE.encode())
    with pytest.raises(SecurityError):
        require_no_token("a.txt", LONG)


@pytest.mark.parametrize("size", [0, 16 << 20])
def test_every_file_is_searched_but_weights(tmp_path: Path, size: int) -> None:
    weights = make_artifact(tmp_path / "weights", more={"openvino_model.bin": LONG, "deep/other.bin": LONG})
    assert model_files(weights, read_measurements(weights))["deep/other.bin"].content == LONG
    held = make_artifact(tmp_path / "held", more={"deep/notes.txt": b"\0" * size + LONG})
    with pytest.raises(SecurityError, match=r"^deep/notes\.txt: it holds an access token"):
        model_files(held, read_measurements(held))


def test_a_report_with_a_token_does_not_leave(made: Path) -> None:
    write_report(made, "tune.json", tuning(made).model_copy(update={"reason": f"by {MINE}"}))
    with pytest.raises(SecurityError, match=r"^tune\.json: it holds an access token"):
        model_files(made, read_measurements(made))


# --- scores


def test_scores_of_benchmarks_leave_where_there_are_any(made: Path) -> None:
    def scores(measured: Measurements) -> dict[str, bytes]:
        return bytes_of(benchmark_scores(measured, "https://huggingface.co/acme/made"))

    assert scores(read_measurements(made)) == {}
    task = TaskScore(
        task="gsm8k", metric="exact_match (strict-match)", value=0.125, standard_error=None, num_samples=1319,
        version="3.0",
    )  # fmt: skip
    write_report(made, "eval.json", evaluation(made).model_copy(update={"tasks": (task,)}))
    (content,) = scores(read_measurements(made)).values()
    assert b"value: 12.5" in content
    assert b"https://huggingface.co/acme/made/blob/main/eval.json" in content
    (made / "eval.json").unlink()
    assert scores(read_measurements(made)) == {}


# --- the card


def test_the_card_that_is_there_is_the_current_one_or_none(made: Path) -> None:
    assert current_card(made, "own\n", "published\n") == "published\n"
    for text in ("own\n", "published\n", "own\r\n", "published\r\n"):
        replace_report(made, "README.md", text.encode())
        assert current_card(made, "own\n", "published\n") == "published\n"
    replace_report(made, "README.md", b"own")
    with pytest.raises(UsageError, match="is not the card that the manifest and the reports give now") as caught:
        current_card(made, "own\n", "published\n")
    assert caught.value.where == str(made / "README.md")
    assert "`keep_card` pushes this one as it is" in caught.value.hint
    assert kept_card(made) == "own"


def test_a_card_that_cannot_be_kept(made: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no README\.md to keep") as caught:
        kept_card(made)
    assert caught.value.hint == "leave `keep_card` out"
    replace_report(made, "README.md", b"\xff")
    for read in (kept_card, lambda directory: current_card(directory, "", "")):
        with pytest.raises(UsageError, match=r"README\.md: is no text in UTF-8") as caught:
            read(made)
        assert caught.value.hint == f"write it again: llmcompress card {made}"
    replace_report(made, "README.md", "Größe\r\n".encode())
    assert kept_card(made) == "Größe\r\n"
