"""How sources are opened, and names that reach the Hub or come from it."""

from __future__ import annotations

import pytest

from llmcompress.errors import SecurityError, UsageError
from llmcompress.spec.access import Access, check_name, check_repo_id, check_revision


def test_a_candidate_is_opened_as_its_reference_is_where_that_fits_an_artifact() -> None:
    reference = Access(
        revision="main",
        trust_remote_code=True,
        offline=True,
        allow_nonfinite=True,
        allow_links=True,
        merge_adapter=True,
        max_context=128,
        requantize=True,
        file="a.gguf",
        text_only=True,
    )
    assert reference.of_candidate() == Access(allow_links=True, max_context=128)
    assert Access(offline=True).of_candidate() == Access()
    assert reference.at("other") == reference._replace(revision="other")
    assert reference.at(None).revision is None


@pytest.mark.parametrize("repo_id", ["gpt2", "acme/tiny", "a.b_c/D-9"])
def test_ids_of_the_hub(repo_id: str) -> None:
    assert check_repo_id(repo_id) == repo_id


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "../x", "a--b", "gpt2\n", "mоdel", "a b", "x" * 97])
def test_what_is_no_id(repo_id: str) -> None:
    with pytest.raises(UsageError, match="is neither an existing path nor a Hub id"):
        check_repo_id(repo_id)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "a" * 200, "feature/a.b-c_d+e"])
def test_names_of_revisions(revision: str) -> None:
    assert check_revision(revision) == revision


@pytest.mark.parametrize(
    "revision", ["", "a..b", "a/../b", "a//b", "/a", "a/", ".a", "a/.b", "a.lock", "a" * 201, "a b", "a\n", "-a", "ä"]
)
def test_what_is_no_revision(revision: str) -> None:
    with pytest.raises(UsageError, match="is not a revision"):
        check_revision(revision)


@pytest.mark.parametrize("name", ["model.safetensors", "a b/c d.json", "a/..b", "...", "\x7f", "ä.json"])
def test_names_of_files(name: str) -> None:
    assert check_name(name, where="acme/tiny") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../b", "a//b", "/a", "a/", "a\\b", "c:a", "a\x1f", "\0", "a\n"]
)
def test_names_that_leave_their_directory(name: str) -> None:
    with pytest.raises(SecurityError, match="leaves the model's directory or cannot be a file in it") as caught:
        check_name(name, where="acme/tiny")
    assert caught.value.where == "acme/tiny"
