"""What a source's README states is read as data, within bounds, and reaches the manifest and nothing else."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from artifact_fixture import write_artifact
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders.model_card import read_source_card
from llmcompress.loaders.resolving import resolve
from llmcompress.report.record import SourceCard


def stated(directory: Path, readme: str | bytes) -> SourceCard:
    content = readme if isinstance(readme, bytes) else readme.encode()
    (directory / "README.md").write_bytes(content)
    card = read_source_card(directory)
    assert card is not None
    assert card.sha256 == hashlib.sha256(content).hexdigest()
    return card


def test_license_and_language_are_taken_as_the_text_that_stands_there(tmp_path: Path) -> None:
    card = stated(
        tmp_path,
        "---\nlicense: llama3.2\nlicense_name: 'Llama: 3'\nlicense_link: https://example.org/LICENSE\n"
        "language:\n- en\n- no\n- [nested]\nmodel-index:\n- name: x\n  license: inner\n---\n# Title\nlicense: body\n",
    )
    assert card.license == ("llama3.2",)
    assert card.license_name == "Llama: 3"
    assert card.license_link == "https://example.org/LICENSE"
    # Norwegian, which YAML 1.1 takes for false.
    assert card.language == ("en", "no")
    assert card.problem is None


@pytest.mark.parametrize(
    ("readme", "licenses"),
    [
        ("---\r\nlicense: mit\r\n---\r\ntext", ("mit",)),
        ("\ufeff---\nlicense: [mit, apache-2.0]\n---", ("mit", "apache-2.0")),
        ("---\nlicense: mit\n---\n---\nlicense: other\n---\n", ("mit",)),
        ("---\nlicense:\n---\n", ()),
        ("---\nlicense: ~\n---\n", ()),
        ("---\n- license\n---\n", ()),
        ("---\nlicense: mit\n", ()),
        ("no front matter\n---\nlicense: mit\n---\n", ()),
        ("", ()),
        # Neither a tag nor an alias is followed.
        ("---\nlicense: !!python/object/apply:os.system ['touch x']\n---\n", ("touch x",)),
        ("---\na: &a [mit, mit]\nb: &b [*a, *a]\nlicense: *b\n---\n", ()),
    ],
)
def test_front_matter_is_found_where_the_hub_finds_it(tmp_path: Path, readme: str, licenses: tuple[str, ...]) -> None:
    card = stated(tmp_path, readme)
    assert card.license == licenses
    assert card.problem is None
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("readme", "problem"),
    [
        ("---\nlicense: a: b\n---\n", "its front matter is not YAML"),
        ('---\nlicense: "\\UFFFFFFFF"\n---\n', "its front matter is not YAML"),
        ("---\nlicense: a\nlicense: b\n---\n", "its front matter has the key 'license' twice"),
        ("---\n" + "[" * 60_000 + "\n---\n", "its front matter has more than 32 levels"),
        ("---\nlicense: " + "x" * 2000 + "\n---\n", "the license in its front matter is too long"),
        ("---\nlanguage: [" + "en, " * 600 + "]\n---\n", "the language in its front matter is too long"),
        ("---\nx: " + "y" * 300_000 + "\n---\n", "its front matter has more than 262144 characters"),
        (b"---\nlicense: \xff\n---\n", "it is not UTF-8"),
        (b"x" * 16_000_001, "it has more than 16000000 bytes"),
    ],
)
def test_what_cannot_be_read_is_said_soon_and_stops_nothing(tmp_path: Path, readme: str | bytes, problem: str) -> None:
    started = time.process_time()
    card = stated(tmp_path, readme)
    assert time.process_time() - started < 2
    assert (card.problem, card.license, card.language) == (problem, (), ())


def test_half_of_a_surrogate_pair_can_be_written_to_a_file(tmp_path: Path) -> None:
    card = stated(tmp_path, '---\nlicense: "\\ud800x"\n---\n')
    assert card.license == ("?x",)
    assert SourceCard.model_validate_json(card.model_dump_json()) == card


def test_no_readme_and_an_unreadable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_source_card(tmp_path) is None
    (tmp_path / "README.md").write_text("x")

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"README.md: cannot be read: Permission denied"):
        read_source_card(tmp_path)


def test_a_readme_that_is_a_link_out_of_the_model_is_not_opened(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("---\nlicense: secret\n---\n")
    (model / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(SecurityError, match=r"README.md is a link to .*secret, outside the model's directory"):
        resolve(model)


def test_the_manifest_holds_what_is_stated_and_no_other_byte_depends_on_it(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "source")
    made = {}
    for name, readme in (("first", "---\nlicense: mit\nlanguage: en\n---\n"), ("second", "---\nlicense: gpl\n---\n")):
        (source / "README.md").write_text(readme)
        made[name] = llmcompress.compress(source, "none", tmp_path / name)
    assert made["first"].provenance.card.license == ("mit",)
    assert read_manifest(tmp_path / "second").provenance.card.license == ("gpl",)
    assert made["first"].files == made["second"].files
    assert made["first"].provenance.files == made["second"].provenance.files
    assert not [file for file in made["first"].provenance.files if file.path == "README.md"]
    # An artifact of ours without a card passes on what its own source stated.
    again = llmcompress.load(tmp_path / "first")
    assert again.provenance.card == made["first"].provenance.card
    (tmp_path / "first" / "README.md").write_text("---\nlicense: own\n---\n")
    assert llmcompress.load(tmp_path / "first").provenance.card.license == ("own",)


def test_a_manifest_of_before_is_read(tmp_path: Path) -> None:
    out = write_artifact(tmp_path / "out", 1)
    text = (out / "llmcompress.json").read_text()
    assert '"card": null' in text
    (out / "llmcompress.json").write_text(text.replace(',\n    "card": null', ""))
    assert "card" not in (out / "llmcompress.json").read_text()
    assert read_manifest(out).provenance.card is None
