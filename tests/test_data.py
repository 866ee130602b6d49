"""Run: pytest tests/test_data.py."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcompress.data import calibration as windows
from llmcompress.data import calibration_windows, read_texts, token_ids_sha256
from llmcompress.data.hub_datasets import KNOWN_DATASETS
from llmcompress.data.tokens import by_transformers
from llmcompress.errors import DataError, HubError, LlmcompressError, SecurityError, UsageError, WriteError
from llmcompress.spec import Calibration, EvalSpec
from tests import tokenizer_fixture

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DOCUMENTS = [f"Document {number} says: the quick brown fox number {number} jumps.\n" * 4 for number in range(20)]


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return tokenizer_fixture.byte_level()


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    return tokenizer_fixture.sentencepiece_bpe()


def calibration(path: Path | str, **values: Any) -> Calibration:
    return Calibration(**{"dataset": str(path), "num_samples": 4, "seq_len": 16, "seed": 3, **values})


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in DOCUMENTS])


# --- reading


def test_txt_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "Zwei Sätze.\r\n\r\nUnd 日本.\n".encode())
    assert list(read_texts(path)) == ["Zwei Sätze.\r\n\r\nUnd 日本.\n"]
    assert list(read_texts(str(path))) == ["Zwei Sätze.\r\n\r\nUnd 日本.\n"]


def test_jsonl_and_parquet_hold_one_document_per_row(tmp_path: Path) -> None:
    documents = ["first", "", "drittes ß\u2028with a line separator"]
    lines = jsonl(tmp_path / "a.jsonl", [{"id": 1, "body": text} for text in documents])
    lines.write_text(lines.read_text() + "\n\n")
    assert list(read_texts(lines, text_field="body")) == documents
    table = parquet(tmp_path / "a.parquet", {"body": documents, "id": [1, 2, 3]})
    assert list(read_texts(table, text_field="body")) == documents


def refused(error: type[LlmcompressError], message: str, where: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert caught.value.where == where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "error", "message", "where"),
    [
        ("a.txt", b"", DataError, "the file is empty", "a.txt"),
        ("a.txt", b" \n\t", DataError, "no documents in it", "a.txt"),
        ("a.txt", b"abc\xe9def", DataError, "not UTF-8: byte 0xe9 at offset 3", "a.txt"),
        (
            "a.csv",
            b"a,b",
            UsageError,
            r"the ending \.csv is not known, accepted are \.txt, \.jsonl, \.parquet",
            "a.csv",
        ),
        ("a", b"text", UsageError, r"the ending \(none\) is not known", "a"),
        ("a.jsonl", b"\n\n", DataError, "no documents in it", "a.jsonl"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', DataError, "byte 0xff at offset 24", "a.jsonl"),
        ("a.jsonl", b'{"text": "x"}\n\n{oops}\n', DataError, "not JSON: ", "a.jsonl: line 3"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', DataError, "holds a list, a JSON object is needed", "a.jsonl: line 2"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "x", "id": 1}\n',
            DataError,
            "no field 'text', there are: 'body', 'id'",
            "a.jsonl: line 2",
        ),
        ("a.jsonl", b"{}\n", DataError, "no field 'text', there are: none", "a.jsonl: line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', DataError, "the text field holds null", "a.jsonl: line 2"),
        ("a.jsonl", b'{"text": ["x"]}\n', DataError, "the text field holds a list, a string is", "a.jsonl: line 1"),
        ("a.parquet", b"PAR1 but not really", DataError, "not a readable Parquet file", "a.parquet"),
    ],
)
def test_unusable_files(
    name: str, content: bytes, error: type[LlmcompressError], message: str, where: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(error, message, where, lambda: list(read_texts(tmp_path / name)))


ITALIAN = "La città è più bella di sera, perché c'è meno traffico e si può camminare lungo il fiume.\n" * 4
UKRAINIAN = "Вчора ввечері ми пішли до кінотеатру й подивилися новий фільм, а потім повернулися додому.\n" * 4
CHINESE = "昨天晚上我们去电影院看了一部新电影,然后一起回家吃饭。\n" * 4
JAPANESE = "昨日の夜、友達と映画館へ行って新しい映画を見ました。\n" * 4
KOREAN = "어제 저녁에 친구와 함께 영화관에 가서 새로운 영화를 보았습니다.\n" * 4


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("text", [ITALIAN, CHINESE, "plain \U0001f600 text"])
def test_a_mark_says_how_a_file_is_read(text: str, codec: str, tmp_path: Path) -> None:
    mark = "\ufeff" if codec.endswith("be") else ""  # The others write their own.
    (tmp_path / "a.txt").write_bytes((mark + text).encode(codec))
    assert list(read_texts(tmp_path / "a.txt")) == [text]
    lines = "".join(json.dumps({"text": part}, ensure_ascii=False) + "\r\n" for part in (text, "b"))
    (tmp_path / "a.jsonl").write_bytes((mark + lines).encode(codec))
    assert list(read_texts(tmp_path / "a.jsonl")) == [text, "b"]


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        *((text, codec) for text in (ITALIAN, UKRAINIAN, CHINESE) for codec in ("utf-16-le", "utf-16-be", "utf-32-le")),
        ("plain ASCII text, and nothing else in it\n" * 3, "utf-16-le"),
        ("plain ASCII text, and nothing else in it\n" * 3, "utf-32-be"),
        (ITALIAN, "latin-1"),
        ("Wieczorem poszliśmy do kina, żeby zobaczyć nowy film, i wróciliśmy późno.\n" * 4, "iso8859-2"),
        (ITALIAN, "mac_roman"),
        ("plain ASCII text of many lines\n" * 9000 + ITALIAN * 900, "cp1252"),
        (UKRAINIAN, "cp1251"),
        (UKRAINIAN, "koi8-u"),
        (CHINESE, "gbk"),
        (CHINESE * 3000, "gb18030"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (KOREAN, "euc_kr"),
    ],
)
@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
def test_the_command_in_the_hint_makes_utf_8_of_another_encoding(
    text: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-my text.txt").write_bytes(text.encode(codec))
    with pytest.raises(DataError, match=r"not UTF-8: byte 0x|a NUL character in line 1, which no text has") as caught:
        list(read_texts("-my text.txt"))
    assert caught.value.hint
    subprocess.run(caught.value.hint.partition("convert it with: ")[2], shell=True, check=True)
    assert list(read_texts("-my text.utf8.txt")) == [text]


@pytest.mark.parametrize(
    ("content", "message", "hint", "left"),
    [
        (
            ITALIAN.encode() + b"\xff",
            r"not UTF-8: byte 0xff at offset \d+ \(invalid start",
            "most of it is UTF-8",
            ITALIAN,
        ),
        (random.Random(3).randbytes(4096), "not UTF-8: byte", "convert it with: iconv -f ENCODING -t UTF-8 ", None),
        (ITALIAN.encode() + "è".encode()[:1], "unexpected end of data", "most of it is UTF-8", ITALIAN),
        ("è".encode("utf-16") + b"\0", "UTF-16LE by its mark, but not throughout: byte 0x00 at offset 4", "", "è"),
        (b"one\ntwo\0\0three", "a NUL character in line 2, which no text has", "tr -d", "one\ntwothree"),
        ("one\0".encode("utf-16"), "a NUL character in line 1", "write the file again without it", None),
    ],
)
def test_a_damaged_text_is_refused_with_what_saves_the_rest(
    content: bytes, message: str, hint: str, left: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_texts(path))
    assert caught.value.hint
    assert hint in caught.value.hint
    if left is not None and shutil.which("iconv"):
        subprocess.run(
            caught.value.hint.partition("left out by: ")[2], shell=True, check=False
        )  # iconv -c exits with 1.
        assert (tmp_path / "a.utf8.txt").read_text(encoding="utf-8").removeprefix("\ufeff") == left


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00 and \\u0000"}\n{"text": "\\ud83d"}\n', encoding="utf-8")
    call = lambda: list(read_texts(path))  # noqa: E731
    refused(DataError, "half of a surrogate pair, which no text can hold", "a.jsonl: line 2", call)


def test_unusable_parquet_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"body": ["x"], "id": [7]})
    refused(DataError, "no field 'text', there are: 'body', 'id'", "a.parquet", lambda: list(read_texts(path)))
    refused(
        DataError, "the text field holds a number", "a.parquet: row 1", lambda: list(read_texts(path, text_field="id"))
    )


def test_missing_file(tmp_path: Path) -> None:
    refused(
        DataError, "cannot be read: No such file", "absent.txt", lambda: list(read_texts(str(tmp_path / "absent.txt")))
    )


def test_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)
    refused(DataError, "1073741825 bytes, at most 1073741824", "huge.txt", lambda: list(read_texts(path)))


# --- Hub datasets


@pytest.mark.parametrize("name", ["wikitext", "Salesforce/wikitext", "Salesforce/wikitext@", "/x@main", "a/b/c@main"])
def test_hub_name_must_be_pinned(name: str) -> None:
    refused(UsageError, r"or a Hub dataset namespace/name@revision", "dataset", lambda: list(read_texts(name)))


class Builder:
    """What datasets.load_dataset_builder returns, as far as it is used."""

    hash = COMMIT

    def download_and_prepare(self) -> None:
        pass

    def as_dataset(self, split: str) -> Any:
        import datasets

        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
        return datasets.Dataset.from_dict({"body": DOCUMENTS, "id": list(range(len(DOCUMENTS)))})


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch, byte_level: Any, tmp_path: Path) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: object, **options: object) -> Builder:
        asked.append((args, options, datasets.config.HF_HUB_OFFLINE))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    name = f"space/name@{COMMIT}"
    assert list(read_texts(name, subset="small", text_field="body", offline=True)) == DOCUMENTS
    assert list(read_texts(name, text_field="body")) == DOCUMENTS
    assert asked == [
        (("space/name", "small"), {"revision": COMMIT, "data_files": None}, True),
        (("space/name", None), {"revision": COMMIT, "data_files": None}, False),
    ]
    assert datasets.config.HF_HUB_OFFLINE is False
    refused(DataError, "no field 'text', there are: 'body', 'id'", name, lambda: list(read_texts(name)))
    refused(DataError, 'Unknown split "test"', name, lambda: list(read_texts(name, split="test", text_field="body")))

    from_hub = calibration_windows(calibration(name, text_field="body", split="train"), byte_level)
    local = jsonl(tmp_path / "same.jsonl", [{"body": text} for text in DOCUMENTS])
    assert np.array_equal(
        from_hub.token_ids, calibration_windows(calibration(local, text_field="body"), byte_level).token_ids
    )
    assert from_hub.record.dataset == name


@pytest.mark.parametrize("name", sorted(KNOWN_DATASETS))
def test_known_names_are_pinned_and_take_no_more_than_they_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    class Known(Builder):
        def as_dataset(self, split: str) -> Any:
            asked.append(split)
            return datasets.Dataset.from_dict({"text": ["one", "two"]})

    def load(*args: object, **options: object) -> Builder:
        asked.append((args, options))
        builder = Known()
        builder.hash = str(options["revision"])
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert list(read_texts(name)) == ["one", "two"]
    known = KNOWN_DATASETS[name]
    assert re.fullmatch("[0-9a-f]{40}", known.revision)
    options = {"revision": known.revision, "data_files": known.data_files}
    assert asked == [((known.repo_id, known.subset), options), known.split]
    assert EvalSpec(dataset=name).dataset_path() is None


def hub_failures() -> list[Any]:
    from datasets.exceptions import DatasetNotFoundError

    return [
        (DatasetNotFoundError("Dataset 'space/name' doesn't exist on the Hub"), HubError, "doesn't exist on the Hub"),
        (
            NotADirectoryError(20, "Not a directory", "/f"),
            WriteError,
            "Face cache .* cannot be written: Not a directory",
        ),
        (
            OSError(30, "Read-only file system"),
            WriteError,
            r"the Hugging Face cache .*datasets cannot be written: Read-",
        ),
        (ConnectionError("Couldn't reach 'space/name'"), HubError, "the Hub cannot be reached .*: Couldn't reach"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "cannot be used: Dataset scripts are no"),
        (ValueError("BuilderConfig 'x' not found. Available: ['a']"), DataError, r"not found\. Available: \['a'\]"),
    ]


@pytest.mark.parametrize("case", range(6))
def test_hub_failures(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    failure, error, message = hub_failures()[case]

    def load(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    refused(error, message, f"space/name@{COMMIT}", lambda: list(read_texts(f"space/name@{COMMIT}")))


def test_offline_takes_the_cache_at_the_pinned_revision_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    lines = jsonl(tmp_path / "lines.jsonl", [{"text": text} for text in DOCUMENTS])
    built = datasets.load_dataset_builder("json", data_files=str(lines), cache_dir=str(tmp_path / "build"))
    built.download_and_prepare()
    cached = tmp_path / "cache" / "space___name" / "default" / "0.0.0" / COMMIT
    cached.parent.mkdir(parents=True)
    Path(built.cache_dir).rename(cached)
    (cached / "json-train.arrow").rename(cached / "name-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    info.update(config_name="default", dataset_name="name")
    (cached / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    assert list(read_texts(f"space/name@{COMMIT}", offline=True)) == DOCUMENTS
    for other in ("f" * 40, "main"):
        refused(
            HubError,
            f"the newest cached copy is revision {COMMIT}",
            f"space/name@{other}",
            lambda other=other: list(read_texts(f"space/name@{other}", offline=True)),
        )
    refused(
        HubError,
        "it is not in the local cache",
        f"space/absent@{COMMIT}",
        lambda: list(read_texts(f"space/absent@{COMMIT}", offline=True)),
    )


# --- windows


def test_windows_are_pieces_of_the_joined_documents(texts: Path, sentencepiece: Any) -> None:
    made = calibration_windows(calibration(texts), sentencepiece)
    assert made.token_ids.shape == (4, 16)
    assert made.token_ids.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        made.token_ids[0, 0] = 1
    # numpy's own generator, the tokenizer's own special tokens: the definition, written out
    generator = np.random.Generator(np.random.PCG64(3))
    stream = [token for index in generator.permutation(20) for token in sentencepiece(DOCUMENTS[index])["input_ids"]]
    assert stream.count(sentencepiece.bos_token_id) == 20
    available = len(stream) // 16
    chosen = generator.choice(available, size=4, replace=False)
    assert made.token_ids.tolist() == [stream[16 * window : 16 * window + 16] for window in chosen]


def test_end_of_text_stands_between_documents_where_the_tokenizer_puts_nothing(texts: Path, byte_level: Any) -> None:
    all_windows = calibration_windows(calibration(texts, num_samples=20), byte_level).token_ids
    seq_len = 8
    total = sum(len(byte_level(text)["input_ids"]) + 1 for text in DOCUMENTS)
    everything = calibration_windows(
        calibration(texts, num_samples=total // seq_len, seq_len=seq_len), byte_level
    ).token_ids
    assert (everything == byte_level.eos_token_id).sum() >= 19
    assert len(np.unique(all_windows, axis=0)) > 10


def test_special_tokens_on_both_sides(texts: Path) -> None:
    tokenizer = tokenizer_fixture.word_piece()
    ids = calibration_windows(calibration(texts, num_samples=30), tokenizer).token_ids
    rows, columns = np.where(ids[:, :-1] == tokenizer.sep_token_id)
    assert len(rows)
    assert (ids[rows, columns + 1] == tokenizer.cls_token_id).all()


def test_seed_decides(texts: Path, byte_level: Any) -> None:
    first = calibration_windows(calibration(texts), byte_level)
    again = calibration_windows(calibration(texts), byte_level)
    other = calibration_windows(calibration(texts, seed=4), byte_level)
    assert first.record == again.record
    assert np.array_equal(first.token_ids, again.token_ids)
    assert first.record.token_ids_sha256 != other.record.token_ids_sha256


def test_earlier_use_of_the_tokenizer_does_not_matter(texts: Path) -> None:
    tokenizer = tokenizer_fixture.byte_level()
    before = calibration_windows(calibration(texts), tokenizer).record
    tokenizer(["a"], padding="max_length", truncation=True, max_length=3)
    assert calibration_windows(calibration(texts), tokenizer).record == before


def test_record_holds_the_base_name_and_the_hash(texts: Path, byte_level: Any, tmp_path: Path) -> None:
    made = calibration_windows(calibration(texts), byte_level)
    elsewhere = tmp_path / "other folder"
    elsewhere.mkdir()
    (elsewhere / "texts.jsonl").write_bytes(texts.read_bytes())
    assert calibration_windows(calibration(elsewhere / "texts.jsonl"), byte_level).record == made.record
    assert made.record.dataset == "texts.jsonl"
    assert (made.record.num_windows, made.record.seq_len, made.record.seed) == (4, 16, 3)
    packed = struct.pack("<66q", 4, 16, *made.token_ids.ravel().tolist())
    assert made.record.token_ids_sha256 == hashlib.sha256(packed).hexdigest()


def test_hash_sees_the_shape_and_not_the_memory_layout() -> None:
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert token_ids_sha256(ids) == token_ids_sha256(np.asfortranarray(ids))
    assert token_ids_sha256(ids) != token_ids_sha256(ids.reshape(3, 2))


def test_too_little_text_says_how_much_there_is(tmp_path: Path, byte_level: Any) -> None:
    path = tmp_path / "short.txt"
    path.write_text("The quick brown fox. " * 10)
    tokens = len(byte_level(path.read_text())["input_ids"]) + 1
    with pytest.raises(DataError) as caught:
        calibration_windows(calibration(path, num_samples=100), byte_level)
    expected = f"the text gives {tokens // 16} windows of 16 tokens ({tokens} tokens), 100 were asked for"
    assert caught.value.message == expected
    assert caught.value.hint == f"take more text, or set calibration.num_samples to {tokens // 16}"
    calibration_windows(calibration(path, num_samples=tokens // 16), byte_level)

    with pytest.raises(DataError, match="the text gives 0 windows of 5000 tokens") as caught:
        calibration_windows(calibration(path, seq_len=5000), byte_level)
    assert f"calibration.seq_len to {tokens} or less" in caught.value.hint


def test_seq_len_beyond_the_context(texts: Path, byte_level: Any) -> None:
    calibration_windows(calibration(texts), byte_level, max_seq_len=16)
    refused(
        UsageError,
        "seq_len is 16, the model's context is 15 tokens",
        "calibration.seq_len",
        lambda: calibration_windows(calibration(texts), byte_level, max_seq_len=15),
    )


# --- large texts


class Counting:
    """A tokenizer of one token per character that counts what it is given."""

    eos_token_id = 0
    chat_template = None

    def __init__(self) -> None:
        self.chars = 0

    def __call__(self, text: str | list[str], **_: object) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": [ord(character) for character in text]}
        self.chars += sum(map(len, text))
        return {"input_ids": [[ord(character) for character in part] for part in text]}


def test_of_a_large_file_only_a_sample_is_tokenised(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    # each line tells its own position; 3.2 M characters
    path.write_text("".join(f"{line:015d}\n" for line in range(200_000)))
    tokenizer = Counting()
    made = calibration_windows(calibration(path, num_samples=64, seq_len=64), tokenizer)
    assert tokenizer.chars <= windows.MIN_CHARS + windows.MIN_PIECE_CHARS
    found = ["".join(map(chr, window)) for window in made.token_ids]
    places = [int(line) for text in found for line in text.split("\n")[1:2] if len(line) == 15]
    quarters = {place // 50_000 for place in places}
    assert quarters == {0, 1, 2, 3}


def test_a_sample_that_gives_too_few_tokens_is_enlarged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sparse(Counting):
        def __call__(self, text: str | list[str], **_: object) -> dict[str, Any]:
            ids = super().__call__(text)["input_ids"]
            return {"input_ids": ids if isinstance(text, str) else [part[::64] for part in ids]}

    path = tmp_path / "large.txt"
    path.write_text("word " * 600_000)
    made = calibration_windows(calibration(path, num_samples=500, seq_len=64), Sparse())
    assert made.token_ids.shape == (500, 64)


@pytest.mark.parametrize("text", ["line\n" * 99, "word " * 99, "x" * 400, "", "ab\n" + "y" * 50, "日本語" * 40 + "\n"])
def test_cutting_loses_nothing(text: str) -> None:
    parts = list(windows._cut(text, 20))
    assert "".join(parts) == text
    assert all(0 < len(part) <= 20 for part in parts)
    if text.startswith(("line", "word")):
        assert not any(part.strip() and part[0] in "inerod" for part in parts)


def test_cut_text_tokenises_as_the_whole(byte_level: Any) -> None:
    text = "".join(DOCUMENTS)
    parts = list(windows._cut(text, 100))
    assert len(parts) > 20
    joined = [token for ids in by_transformers(byte_level)(parts, False) for token in ids]
    assert joined == byte_level(text)["input_ids"]


# --- chat template

TURNS = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A fox."}]


def test_conversations_through_the_chat_template(tmp_path: Path, byte_level: Any) -> None:
    path = jsonl(tmp_path / "chat.jsonl", [{"messages": TURNS, "text": "not this"}] * 3)
    made = calibration_windows(calibration(path, num_samples=1, chat_template=True), byte_level)
    rendered = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n"
    expected = byte_level(rendered * 3, add_special_tokens=False)["input_ids"]
    places = [
        start for start in range(0, len(expected) - 15, 16) if expected[start : start + 16] == list(made.token_ids[0])
    ]
    assert places


def test_template_writes_the_special_tokens(tmp_path: Path) -> None:
    tokenizer = tokenizer_fixture.sentencepiece_bpe()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    path = jsonl(tmp_path / "chat.jsonl", [{"messages": TURNS}])
    ids = tokenizer("<s>What is it?A fox.", add_special_tokens=False)["input_ids"]
    made = calibration_windows(calibration(path, num_samples=1, seq_len=len(ids), chat_template=True), tokenizer)
    assert made.token_ids.tolist() == [ids]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_string_is_one_user_turn_with_the_prompt_for_the_answer(tmp_path: Path, byte_level: Any) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", [{"text": "What is it?"}])
    ids = byte_level("<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    made = calibration_windows(calibration(path, num_samples=1, seq_len=len(ids), chat_template=True), byte_level)
    assert made.token_ids.tolist() == [ids]


def test_conversations_in_parquet_and_under_another_name(tmp_path: Path, byte_level: Any) -> None:
    table = parquet(tmp_path / "chat.parquet", {"messages": [TURNS] * 3})
    lines = jsonl(tmp_path / "chat.jsonl", [{"turns": TURNS, "messages": "not this"}] * 3)
    from_table = calibration_windows(calibration(table, num_samples=1, chat_template=True), byte_level)
    from_lines = calibration_windows(
        calibration(lines, num_samples=1, chat_template=True, text_field="turns"), byte_level
    )
    assert from_table.record.token_ids_sha256 == from_lines.record.token_ids_sha256


@pytest.mark.parametrize("value", [[], [{"from": "human"}], [{"role": "user", "content": None}], 3, ["x"]])
def test_what_is_no_conversation(value: object, tmp_path: Path, byte_level: Any) -> None:
    path = jsonl(tmp_path / "chat.jsonl", [{"messages": value}])
    refused(
        DataError,
        "not a conversation: a list of",
        "chat.jsonl: line 1",
        lambda: calibration_windows(calibration(path, chat_template=True), byte_level),
    )


def test_chat_template_that_cannot_be_used(tmp_path: Path, texts: Path, byte_level: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    refused(
        UsageError,
        r"a \.txt file is one running text",
        "calibration.chat_template",
        lambda: calibration_windows(calibration(path, chat_template=True), byte_level),
    )
    refused(
        UsageError,
        "the model's tokenizer has no chat template",
        "calibration.chat_template",
        lambda: calibration_windows(calibration(texts, chat_template=True), tokenizer_fixture.byte_level(None)),
    )
    refused(
        SecurityError,
        "rendering was stopped by the sandbox",
        "chat template",
        lambda: calibration_windows(
            calibration(texts, chat_template=True), tokenizer_fixture.byte_level("{{ range(10 ** 9) | length }}")
        ),
    )
