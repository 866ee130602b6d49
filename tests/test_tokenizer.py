"""Run: pytest tests/test_tokenizer.py."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders import chat, chat_template, tokenizer
from llmcompress.loaders.generation import read_generation_config, reconcile_eos, save_generation_config
from tests import tiny_models, tokenizer_fixture

REFERENCE = Path(__file__).parents[2] / "shared" / "models" / "ref-llama-8m"
QUESTION = [{"role": "user", "content": "Hi"}]
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the shared model {REFERENCE} is absent")


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def saved(original: Any, directory: Path) -> Path:
    directory.mkdir()
    tokenizer.save_tokenizer(original, directory)
    return directory


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return tokenizer_fixture.byte_level()


@pytest.fixture(scope="module")
def byte_level_dir(byte_level: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(byte_level, tmp_path_factory.mktemp("tokenizer") / "saved")


# --- load


def test_load_reads_what_was_saved(byte_level: Any, byte_level_dir: Path) -> None:
    loaded = tokenizer.load_tokenizer(byte_level_dir)
    assert loaded("a fox")["input_ids"] == byte_level("a fox")["input_ids"]


def test_load_without_vocabulary_names_what_is_missing(tmp_path: Path) -> None:
    # transformers itself makes up an empty tokenizer of 8 tokens for this directory
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no tokenizer: none of tokenizer\.json") as caught:
        tokenizer.load_tokenizer(tmp_path)
    assert "`tokenizer=False`" in caught.value.hint


def test_load_broken_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        tokenizer.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"model_max_length": [256]}, "'>' not supported between instances"),
        ({"tokenizer_class": "CodeLlamaTokenizer"}, "[Uu]nk token"),
    ],
)
def test_load_settings_that_no_text_gets_past(
    setting: dict[str, Any], what: str, byte_level_dir: Path, tmp_path: Path
) -> None:
    """transformers takes them, and fails at the first text."""
    shutil.copytree(byte_level_dir, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ModelError, match=f"the tokenizer cannot be loaded: .*{what}"):
        tokenizer.load_tokenizer(tmp_path / "model")


def test_load_empty_vocabulary(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError, match="the tokenizer's vocabulary is empty"):
        tokenizer.load_tokenizer(tmp_path)


def test_load_does_not_run_code_of_the_model(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    source = tmp_path / "model"
    source.mkdir()
    (source / "vocab.txt").write_text("a\nb\n")
    (source / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "EvilTokenizer"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SecurityError, match="Python code that came with the model") as caught:
        tokenizer.load_tokenizer(source)
    assert "`trust_remote_code`" in caught.value.hint
    assert not canary.exists()


# --- save


def test_saved_bytes_do_not_depend_on_place_or_use(byte_level: Any, byte_level_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_level_dir, tmp_path / "elsewhere")
    loaded = tokenizer.load_tokenizer(tmp_path / "elsewhere")
    loaded(["a fox"], padding="max_length", truncation=True, max_length=1)
    again = saved(loaded, tmp_path / "again")
    as_from_the_hub = tokenizer.load_tokenizer(again)
    as_from_the_hub.init_kwargs.update(is_local=False, name_or_path="space/name")
    once_more = saved(as_from_the_hub, tmp_path / "once more")
    assert hashes(again) == hashes(once_more)
    assert saved(byte_level, tmp_path / "third").is_dir()
    assert hashes(tmp_path / "third") == hashes(byte_level_dir)
    converted = [name for name in hashes(again) if name.startswith("openvino_")]
    assert sorted(converted) == sorted(tokenizer.CONVERTED_FILES)
    first = hashes(byte_level_dir)
    assert hashes(again)["tokenizer.json"] == first["tokenizer.json"]
    assert hashes(again)["openvino_tokenizer.bin"] == first["openvino_tokenizer.bin"]
    for path in again.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_saving_leaves_the_callers_tokenizer_alone(byte_level: Any, tmp_path: Path) -> None:
    byte_level(["a fox"], padding=False, truncation=True, max_length=2)
    side, before = byte_level.padding_side, byte_level.backend_tokenizer.to_str()
    saved(byte_level, tmp_path / "saved")
    assert (byte_level.padding_side, byte_level.backend_tokenizer.to_str()) == (side, before)


def test_save_writes_nothing_elsewhere(byte_level: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "must not be used"))
    saved(byte_level, tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]


def test_save_failed_conversion(byte_level: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino_tokenizers

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no such step")

    monkeypatch.setattr(openvino_tokenizers, "convert_tokenizer", refuse)
    with pytest.raises(ModelError, match=r"cannot convert .*: NotImplementedError: no such step") as caught:
        saved(byte_level, tmp_path / "saved")
    assert "`tokenizer=False`" in caught.value.hint


def test_save_without_detokenizer(byte_level: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino_tokenizers

    only_one = openvino_tokenizers.convert_tokenizer(byte_level)
    monkeypatch.setattr(openvino_tokenizers, "convert_tokenizer", lambda *_, **__: only_one)
    with pytest.raises(ModelError, match="made no detokenizer for"):
        saved(byte_level, tmp_path / "saved")


def test_required_files_are_what_is_written(byte_level: Any, tmp_path: Path) -> None:
    directory = saved(byte_level, tmp_path / "saved")
    save_generation_config({}, None, byte_level, directory)
    others = {"openvino_model.xml", "openvino_model.bin", "config.json"}
    for runtime, names in tokenizer.REQUIRED_FILES.items():
        assert set(names) - others <= set(hashes(directory)), runtime


# --- converted tokenizer against the original


@pytest.mark.parametrize("kind", tokenizer_fixture.EXACT)
def test_converted_tokenizer_is_exact(kind: str, tmp_path: Path) -> None:
    original = tokenizer_fixture.EXACT[kind]()
    tokenizer.check_tokenizer(original, saved(original, tmp_path / "saved"))


@needs_reference
def test_reference_model(tmp_path: Path) -> None:
    original = tokenizer.load_tokenizer(REFERENCE)
    directory = saved(original, tmp_path / "saved")
    tokenizer.check_tokenizer(original, directory)
    pytest.importorskip("openvino_genai")
    assert chat_template.check_chat_template(original, directory) == "equal"
    assert reconcile_eos(json.loads((REFERENCE / "config.json").read_text()), None, original) == [0]


def test_known_difference_of_the_converter_is_reported(tmp_path: Path) -> None:
    original = tokenizer_fixture.unigram()
    directory = saved(original, tmp_path / "saved")
    with pytest.raises(ModelError, match=r"the text 'two  spaces,   three' gives") as caught:
        tokenizer.check_tokenizer(original, directory, ["a", "two  spaces,   three"])
    assert caught.value.where == tokenizer.TOKENIZER_XML
    assert str(original("two  spaces,   three")["input_ids"]) in caught.value.message


def test_wrong_detokenizer_is_reported(byte_level: Any, byte_level_dir: Path, tmp_path: Path) -> None:
    directory = saved(tokenizer_fixture.sentencepiece_bpe(), tmp_path / "other")
    for name in ("openvino_tokenizer.xml", "openvino_tokenizer.bin"):
        shutil.copy(byte_level_dir / name, directory / name)
    with pytest.raises(ModelError, match=r"the ids \[.*\] of 'café' gives .*the original gives 'café'") as caught:
        tokenizer.check_tokenizer(byte_level, directory, ["café"])
    assert caught.value.where == tokenizer.DETOKENIZER_XML


def test_damaged_conversion(byte_level: Any, byte_level_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_level_dir, tmp_path / "damaged")
    (tmp_path / "damaged" / "openvino_detokenizer.xml").write_text("<net>")
    with pytest.raises(ModelError, match="cannot be compiled"):
        tokenizer.check_tokenizer(byte_level, tmp_path / "damaged", ["a"])


# --- chat template


def with_template(template: str, directory: Path) -> tuple[Any, Path]:
    original = tokenizer_fixture.byte_level(template)
    return original, saved(original, directory)


def test_chat_template_equal(byte_level: Any, byte_level_dir: Path) -> None:
    pytest.importorskip("openvino_genai")
    assert chat_template.check_chat_template(byte_level, byte_level_dir) == "equal"


def test_chat_template_none(tmp_path: Path) -> None:
    assert chat_template.check_chat_template(tokenizer_fixture.byte_level(None), tmp_path) == "none"


def test_chat_template_not_checked_without_genai(
    byte_level: Any, byte_level_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = chat_template.importlib.util.find_spec
    monkeypatch.setattr(
        chat_template.importlib.util, "find_spec", lambda name: None if name == "openvino_genai" else find_spec(name)
    )
    assert chat_template.check_chat_template(byte_level, byte_level_dir) == "not checked"


def test_conversations_that_the_template_refuses_are_skipped(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert chat_template.check_chat_template(*with_template(template, tmp_path / "saved")) == "equal"


def test_chat_template_rendered_otherwise(tmp_path: Path) -> None:
    # GenAI drops the indentation of a line that holds an expression
    pytest.importorskip("openvino_genai")
    template = "{% for m in messages %}\n    {% if true %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    with pytest.raises(ModelError, match=r"GenAI renders user otherwise: got 'What is.*the original gives '  What is"):
        chat_template.check_chat_template(*with_template(template, tmp_path / "saved"))


def test_chat_template_unsupported_by_genai(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    template = "{% for m in messages %}{{ 'a' * 3 }}{{ '%05.1f' | format(2.5) }}{{ m.content }}{% endfor %}"
    with pytest.raises(ModelError, match="GenAI cannot render it"):
        chat_template.check_chat_template(*with_template(template, tmp_path / "saved"))


def test_chat_template_without_converted_files(byte_level: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    with pytest.raises(ModelError, match="OpenVINO GenAI cannot"):
        chat_template.check_chat_template(byte_level, tmp_path)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content ", "{{ messages[0].content | nosuch }}"])
def test_broken_chat_template(template: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the template refuses the conversation user: Template"):
        chat_template.check_chat_template(tokenizer_fixture.byte_level(template), tmp_path)


# --- bounds on chat templates


def test_endless_template_is_stopped() -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    before = sys.gettrace()
    with pytest.raises(SecurityError, match=r"rendering did not end within 0\.2 s"):
        chat.render(tokenizer_fixture.byte_level(loops), QUESTION, add_generation_prompt=True, time_limit_s=0.2)
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''.format.__globals__['os'] }}",
        "{{ messages.append(1) }}",
    ],
)
def test_forbidden_template_is_refused(template: str) -> None:
    with pytest.raises(SecurityError, match="rendering was stopped by the sandbox"):
        chat.render(tokenizer_fixture.byte_level(template), QUESTION, add_generation_prompt=True)


def test_huge_template_is_refused() -> None:
    huge = tokenizer_fixture.byte_level("x" * (chat.MAX_TEMPLATE_CHARS + 1))
    with pytest.raises(SecurityError, match="the chat template has 1048577 characters, at most 1048576"):
        chat.render(huge, QUESTION, add_generation_prompt=True)


# --- eos and generation config


def test_eos_from_every_source(byte_level: Any) -> None:
    turn_end = byte_level.convert_tokens_to_ids("<|im_end|>")
    assert chat_template.turn_end_id(byte_level) == turn_end
    eos = reconcile_eos({"eos_token_id": 7}, {"eos_token_id": [9, 7]}, byte_level)
    assert eos == sorted({7, 9, turn_end, byte_level.eos_token_id})
    assert reconcile_eos({"eos_token_id": None}, None, None) == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", None),
        ("{{ raise_exception('never') }}", None),
    ],
)
def test_turn_end(template: str | None, expected: str | None) -> None:
    original = tokenizer_fixture.byte_level(template)
    found = chat_template.turn_end_id(original)
    assert found == (None if expected is None else original.convert_tokens_to_ids(expected))


def test_the_next_turns_bos_is_no_turn_end() -> None:
    original = tokenizer_fixture.byte_level("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}")
    original.bos_token = "<|im_start|>"
    assert chat_template.turn_end_id(original) is None


@pytest.mark.parametrize("value", ["2", [1, None], -1, True, 1.0])
def test_eos_that_is_no_id(value: object) -> None:
    with pytest.raises(ModelError, match=r"eos_token_id is .* a token id or a list of them is needed") as caught:
        reconcile_eos({"eos_token_id": value}, None, None)
    assert caught.value.where == "config.json"


def test_generation_config_keeps_the_rest(byte_level: Any, tmp_path: Path) -> None:
    # do_sample false with a temperature: GenerationConfig.save_pretrained refuses it, people ship it all the same
    source = {"do_sample": False, "temperature": 0.6, "eos_token_id": 300, "_from_model_config": True}
    eos = save_generation_config({"eos_token_id": 300}, source, byte_level, tmp_path)
    written = read_generation_config(tmp_path)
    assert written == {"do_sample": False, "temperature": 0.6, "eos_token_id": eos}
    assert {300, byte_level.eos_token_id} <= set(eos)

    from transformers import GenerationConfig

    assert GenerationConfig.from_pretrained(str(tmp_path)).eos_token_id == eos


def test_generation_config_made_from_config(tmp_path: Path) -> None:
    save_generation_config({"eos_token_id": 2, "bos_token_id": 1, "hidden_size": 8}, None, None, tmp_path)
    assert read_generation_config(tmp_path) == {"bos_token_id": 1, "eos_token_id": 2}


def test_generation_config_absent_or_broken(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) is None
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read_generation_config(tmp_path)
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="not a JSON object"):
        read_generation_config(tmp_path)


def test_a_tokenizer_that_transformers_5_saved_opens_in_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    given: dict[str, Any] = {}
    opened_by = PreTrainedTokenizerFast.from_pretrained

    def from_pretrained(path: str, **settings: Any) -> Any:
        given.update(settings)
        return opened_by(path, local_files_only=True)

    tiny_models.write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend"}
    path.write_text(json.dumps({**config, "extra_special_tokens": ["<|end|>"]}))
    before = path.read_bytes()
    expected = tokenizer.load_tokenizer(tmp_path)("the thin <|end|>")["input_ids"]
    monkeypatch.setattr(tokenizer, "installed_transformers", lambda: "4.57.6")
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", from_pretrained)
    assert tokenizer.load_tokenizer(tmp_path)("the thin <|end|>")["input_ids"] == expected
    # 4 has no list of that name.
    assert (given["additional_special_tokens"], given["extra_special_tokens"]) == (["<|end|>"], {})
    assert path.read_bytes() == before
