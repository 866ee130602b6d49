"""The tokenizer's own files: copied as they were published, and read whatever library they need."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.errors import ModelError, ResourceError
from llmcompress.loaders import tokenizer_files
from llmcompress.loaders.chat_template import check_chat_template
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.loaders.tokenizer import CHECK_TEXTS, CONVERTED_FILES, check_tokenizer, load_tokenizer, save_tokenizer
from llmcompress.spec.access import Access
from tests import tokenizer_fixture
from tests.fake_hub import FakeHub, running, use

GPT4_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
TEMPLATES = [{"name": "default", "template": tokenizer_fixture.CHATML}, {"name": "rag", "template": "{{ messages }}"}]


def own_files(directory: Path) -> dict[str, bytes]:
    """What is in a directory apart from what the compression and the conversion make."""
    made = re.compile(r"openvino_\w+\.(xml|bin)|(generation_)?config\.json|llmcompress\.json|recipe\.yaml")
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not made.fullmatch(name)}


def published(directory: Path, **config: Any) -> Source:
    """A directory with a byte-level tokenizer as other tools wrote it: in their order, with keys of their own."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer_fixture.byte_level(None).save_pretrained(directory)
    end = {
        "__type": "AddedToken",
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "use_fast": True,
        "pad_token": end,
        "eos_token": end,
    } | config
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=7), newline="\r\n")
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": end, "pad_token": end}))
    (directory / "config.json").write_text('{"model_type": "llama", "vocab_size": 500}')
    return Source("checkpoint", "checkpoint", directory, {"model_type": "llama"})


def saved(source: Source, directory: Path) -> Path:
    directory.mkdir()
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    save_tokenizer(tokenizer, directory, source)
    check_tokenizer(tokenizer, directory)
    return directory


# --- copied


def test_what_was_published_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = published(tmp_path / "source", chat_template=TEMPLATES)
    (source.path / "additional_chat_templates").mkdir()
    (source.path / "additional_chat_templates" / "brief.jinja").write_text("{{ messages[0].content }}")
    (source.path / "trainer_notes.json").write_text("{}")
    output = saved(source, tmp_path / "saved")
    expected = own_files(source.path)
    del expected["trainer_notes.json"]
    assert own_files(output) == expected
    assert {"tokenizer.json", "special_tokens_map.json", "additional_chat_templates/brief.jinja"} < set(expected)


def test_the_conversion_is_the_same_whoever_wrote_the_tokenizers_files(tmp_path: Path) -> None:
    source = published(tmp_path / "source", chat_template=tokenizer_fixture.CHATML)
    output = saved(source, tmp_path / "copied")
    original = load_tokenizer(source.path)
    (tmp_path / "written").mkdir()
    save_tokenizer(original, tmp_path / "written")
    for name in CONVERTED_FILES:
        assert (output / name).read_bytes() == (tmp_path / "written" / name).read_bytes(), name
    pytest.importorskip("openvino_genai")
    assert check_chat_template(original, output) == "equal"


def test_the_configuration_alone_is_written_where_there_is_none(tmp_path: Path) -> None:
    """GPT-2 and its time: a vocabulary and merges, the class follows from the model's configuration."""
    source = published(tmp_path / "source")
    model = json.loads((source.path / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source.path / name).unlink()
    (source.path / "config.json").write_text('{"model_type": "gpt2"}')
    (source.path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (source.path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    output = saved(source, tmp_path / "saved")
    written = own_files(output)
    config = json.loads(written.pop("tokenizer_config.json"))
    assert config["tokenizer_class"] == "GPT2Tokenizer"
    assert written == own_files(source.path)
    assert not [path for path in output.iterdir() if path.is_dir()]


def test_what_is_written_says_it_in_words_that_transformers_4_knows(tmp_path: Path) -> None:
    """transformers 4 has no class TokenizersBackend, and fails on a list of ``extra_special_tokens``."""
    original = tokenizer_fixture.byte_level()
    original.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    save_tokenizer(original, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert not {"extra_special_tokens", "backend"} & set(config)
    assert load_tokenizer(tmp_path).all_special_tokens == original.all_special_tokens


@pytest.mark.parametrize("stated", [None, {"eos_token": "<|endoftext|>", "unk_token": "<|im_end|>"}])
def test_special_tokens_that_are_objects_can_be_opened_by_genai(stated: dict[str, str] | None, tmp_path: Path) -> None:
    """GenAI reads an object from special_tokens_map.json, and fails on one in tokenizer_config.json."""
    source = published(tmp_path / "source", chat_template=tokenizer_fixture.CHATML)
    (source.path / "special_tokens_map.json").unlink()
    if stated is not None:
        (source.path / "special_tokens_map.json").write_text(json.dumps(stated))
    output = saved(source, tmp_path / "saved")
    written = own_files(output)
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    expected = {**(stated or {}), "eos_token": token, "pad_token": token}
    assert json.loads(written.pop("special_tokens_map.json")) == expected
    assert written.items() <= own_files(source.path).items()
    before, after = load_tokenizer(source.path), load_tokenizer(output)
    assert after.added_tokens_decoder == before.added_tokens_decoder
    assert after.special_tokens_map == before.special_tokens_map
    genai = pytest.importorskip("openvino_genai").Tokenizer(str(output))
    assert (genai.get_eos_token(), genai.get_pad_token()) == ("<|endoftext|>", "<|endoftext|>")
    assert check_chat_template(before, output) == "equal"


def test_a_tokenizer_with_code_of_its_own_keeps_code_and_configuration(tmp_path: Path) -> None:
    auto_map = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    source = published(tmp_path / "source", auto_map=auto_map, tokenizer_class="OwnTokenizer")
    code = (
        "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (source.path / "own.py").write_text(code)
    output = saved(source._replace(trust_remote_code=True), tmp_path / "saved")
    expected = own_files(source.path)
    assert {name: own_files(output)[name] for name in expected} == expected
    assert type(load_tokenizer(output, trust_remote_code=True)).__name__ == "OwnTokenizer"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    checkpoint = build_checkpoint(tmp_path / "tiny", "llama", num_hidden_layers=1)
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    kept = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "model_max_length")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **kept}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    files["additional_chat_templates/tools.jinja"] = b"{{ tools }}"
    with running(FakeHub(files=files)) as started:
        use(started.url, tmp_path / "cache", monkeypatch)
        yield started


def test_a_hub_models_tokenizer_comes_with_both_ways_of_compressing_it(hub: FakeHub, tmp_path: Path) -> None:
    report = llmcompress.compress("acme/tiny", "int8", tmp_path / "compressed")
    assert (report.tokenizer, report.chat_template) == ("equal", "equal")
    model = llmcompress.OVModelForCausalLM.from_pretrained("acme/tiny", quantization_config="int8", compile=False)
    model.save_pretrained(tmp_path / "saved")
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tools.jinja"]
    for output in (tmp_path / "compressed", tmp_path / "saved"):
        assert own_files(output) == {name: hub.files[name] for name in names}
        assert llmcompress.verify(output).ok
    assert names[3] in [file.path for file in report.provenance.files]


# --- read by libraries


def write_sentencepiece(directory: Path) -> Any:
    """A SentencePiece model of Llama 2's kind; the model as sentencepiece itself runs it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tokenizer_fixture.SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "config.json").write_text('{"model_type": "llama"}')
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", **names, "add_bos_token": True, "legacy": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_tiktoken(directory: Path, name: str = "tokenizer.model") -> Any:
    """A vocabulary of Llama 3's kind: ranks of byte strings, one a line; the same in tiktoken itself."""
    import tiktoken

    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b"in", b" t", b" th", b" the", b"\xc3\xa9"]
    special = {"<|begin|>": len(tokens), "<|end|>": len(tokens) + 1}
    directory.mkdir()
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (directory / name).write_text("".join(lines))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    added = {str(number): {"content": token, "special": True} for token, number in special.items()}
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "added_tokens_decoder": added}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    )
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("tiny", pat_str=GPT4_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def test_a_sentencepiece_model_alone_is_read_as_sentencepiece_reads_it(tmp_path: Path) -> None:
    stock = write_sentencepiece(tmp_path / "source")
    loaded = load_tokenizer(tmp_path / "source")
    # Before a text that begins with a space, transformers adds none, in version 4 too.
    for text in (text for text in CHECK_TEXTS if not text.startswith(" ")):
        assert loaded(text)["input_ids"] == [1, *stock.encode(text)], text
    output = saved(resolve(tmp_path / "source", Access()), tmp_path / "saved")
    assert own_files(output) == own_files(tmp_path / "source")


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model"])
def test_a_tiktoken_vocabulary_alone_is_read_as_tiktoken_reads_it(name: str, tmp_path: Path) -> None:
    stock = write_tiktoken(tmp_path / "source", name)
    loaded = load_tokenizer(tmp_path / "source")
    for text in CHECK_TEXTS:
        assert loaded(text)["input_ids"] == stock.encode(text, disallowed_special=()), text
    output = saved(resolve(tmp_path / "source", Access()), tmp_path / "saved")
    assert own_files(output) == own_files(tmp_path / "source")


@pytest.mark.parametrize("own_cache", [False, True])
def test_a_tiktoken_vocabulary_that_changed_is_read_as_it_is(
    own_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiktoken caches files by their path, in the directory for temporary files where no other is set."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    if own_cache:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    write_tiktoken(tmp_path / "source")
    assert load_tokenizer(tmp_path / "source")("the")["input_ids"] == [257]
    vocabulary = tmp_path / "source" / "tokenizer.model"
    lines = vocabulary.read_text().splitlines()
    # "the" and "in" change places.
    lines[257], lines[258] = lines[258].replace("258", "257"), lines[257].replace("257", "258")
    vocabulary.write_text("\n".join(lines) + "\n")
    assert load_tokenizer(tmp_path / "source")("the")["input_ids"] == [258]
    assert list((tmp_path / "cache").iterdir()) == []
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == before


@pytest.mark.parametrize(
    ("write", "kind", "absent"),
    [
        (write_sentencepiece, "SentencePiece model", ("sentencepiece",)),
        (write_sentencepiece, "SentencePiece model", ("sentencepiece", "protobuf")),
        (write_tiktoken, "tiktoken vocabulary", ("tiktoken",)),
    ],
)
def test_a_library_that_is_missing_is_named(
    write: Any, kind: str, absent: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "source")
    known = tokenizer_files.installed_versions

    def without(packages: tuple[str, ...]) -> dict[str, str]:
        return {name: version for name, version in known(packages).items() if name not in absent}

    monkeypatch.setattr(tokenizer_files, "installed_versions", without)
    with pytest.raises(ResourceError) as caught:
        load_tokenizer(tmp_path / "source")
    assert caught.value.message == f"it is a {kind}; to read it, {' and '.join(absent)} must be installed"
    assert (caught.value.where, caught.value.hint) == ("source: tokenizer.model", f"pip install {' '.join(absent)}")
    # What tokenizers itself reads needs none of them.
    published(tmp_path / "other")
    shutil.copy(tmp_path / "source" / "tokenizer.model", tmp_path / "other")
    assert load_tokenizer(tmp_path / "other")("a fox")["input_ids"]


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"a b\n", b"\xff 1"]
)
def test_a_vocabulary_that_no_library_reads_is_named(content: bytes, tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match="it is neither a SentencePiece model nor a tiktoken vocabulary") as caught:
        load_tokenizer(tmp_path / "source")
    assert (caught.value.where, caught.value.hint) == ("source: tokenizer.model", "download the file again")
