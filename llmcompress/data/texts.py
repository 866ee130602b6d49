"""Dataset name or file -> documents.

A ``.txt`` file is one document; a line of a ``.jsonl`` file, a row of a ``.parquet`` file or of a Hub dataset is one
document. Nothing is executed: Hub datasets are data files only, at a pinned revision.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.encoding import decode
from llmcompress.errors import DataError, HubError, UsageError
from llmcompress.spec.dataset import FILE_TYPES, is_file_name
from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    from llmcompress.spec import Dataset

MAX_FILE_BYTES = 1 << 30
"""Local files are read as a whole; a calibration needs some megabytes."""


class KnownDataset(NamedTuple):
    """What a short name stands for."""

    repo_id: str
    revision: str
    subset: str | None
    split: str
    data_files: dict[str, str] | None = None
    """Files to take where a split is too large to be taken whole."""


KNOWN_DATASETS = {
    "wikitext2": KnownDataset(
        "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1", "test"
    ),
    "c4": KnownDataset(
        "allenai/c4",
        "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        None,
        "validation",
        {"validation": "en/c4-validation.00000-of-00008.json.gz"},
    ),
}


class Columns(NamedTuple):
    """What is read of a row."""

    fields: tuple[str, ...]
    """Of these the first one that is there."""
    beside: tuple[str, ...] = ()
    """Of these all that are there."""

    def names(self, present: Sequence[str], where: str) -> tuple[str, list[str]]:
        """The field, and what is read beside it.

        Raises:
            DataError: There is none of the fields.
        """
        for field in self.fields:
            if field in present:
                return field, [name for name in self.beside if name in present and name != field]
        raise DataError(
            f"no field {' or '.join(map(repr, self.fields))}, there are: {', '.join(map(repr, present)) or 'none'}",
            where=where,
            hint="set text_field to one of them",
        )


class Rows(NamedTuple):
    """The documents of one dataset as they are stored, by position."""

    values: Sequence[object]
    where: str
    """The dataset's name in messages."""
    unit: str
    numbers: Sequence[int]
    """Line or row number of each value, for messages."""
    beside: Sequence[Mapping[str, object]] = ()
    """Of each row what else was asked for; empty where no row has any of it."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Other fields, where some were asked for beside the value, and how many rows have them."""

    @property
    def has_schema(self) -> bool:
        """Whether all rows have the same fields, of which those that a row lacks are null."""
        return self.unit == "row"

    def place(self, index: int) -> str:
        """Where the document at ``index`` stands, as ``file.jsonl: line 3``."""
        return f"{self.where}: {self.unit} {self.numbers[index]}"


def read_texts(
    dataset: str | Path,
    *,
    subset: str | None = None,
    split: str | None = "train",
    text_field: str = "text",
    offline: bool = False,
) -> Iterator[str]:
    """Read the documents of a dataset in their order, empty ones too.

    Args:
        dataset: A local ``.txt``, ``.jsonl`` or ``.parquet`` file, as a Path or a string that ends so, a Hub
            dataset ``namespace/name@revision``, or a name of ``KNOWN_DATASETS``.
        subset: A Hub dataset's configuration.
        split: A Hub dataset's split.
        text_field: The field or column that holds the text.
        offline: Only what the local cache holds.

    Raises:
        UsageError: neither a file of a known kind nor a pinned Hub name.
        DataError: the file or a row cannot be used, or the dataset has no such subset, split or field.
        HubError: the Hub cannot be reached or has no such dataset.
    """
    rows = read_rows(dataset, Columns((text_field,)), subset=subset, split=split, offline=offline)
    for index in range(len(rows.values)):
        yield text_of(rows, index)


def require_text(dataset: Dataset) -> None:
    """Raise DataError now if the local file that ``dataset`` names is not there; nothing is read."""
    path = dataset.dataset_path()
    if path is not None and not path.is_file():
        raise DataError("no such file", where=path.name, hint=f"check the path {path}")


def text_of(rows: Rows, index: int) -> str:
    """The document at ``index``, which must be a string."""
    value = rows.values[index]
    if not isinstance(value, str):
        raise DataError(
            f"the text field holds {_kind(value)}, a string is needed",
            where=rows.place(index),
            hint="set text_field to the field with the text",
        )
    return value


def read_rows(dataset: str | Path, columns: Columns, *, subset: str | None, split: str | None, offline: bool) -> Rows:
    """Read what ``columns`` names, a ``.txt`` file as a whole. Errors as in :func:`read_texts`."""
    if isinstance(dataset, Path) or is_file_name(dataset):
        rows = _read_file(Path(dataset), columns)
    else:
        rows = _read_hub(_pinned(dataset, subset, split), columns, offline)
    if not len(rows.values):
        raise DataError("no documents in it", where=rows.where, hint="name a dataset that holds text")
    return rows


def _read_file(path: Path, columns: Columns) -> Rows:
    where = path.name
    extension = path.suffix.lower()
    if extension not in FILE_TYPES:
        raise UsageError(
            f"the ending {extension or '(none)'} is not known, accepted are {', '.join(FILE_TYPES)}",
            where=where,
            hint="convert the text to .jsonl with one object per document, or rename it to .txt",
        )
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(
                f"the file has {size} bytes, at most {MAX_FILE_BYTES} are read",
                where=where,
                hint="cut a part of it: some megabytes are enough",
            )
        if size == 0:
            raise DataError("the file is empty", where=where, hint="name a file that holds text")
        if extension == ".parquet":
            return _read_parquet(path, columns)
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", where=where, hint=f"check the path {path}"
        ) from None
    text = decode(raw, path)
    if extension == ".jsonl":
        return _read_jsonl(text, where, columns)
    return Rows([text] if text.strip() else [], where, "document", [1])


def _read_jsonl(text: str, where: str, columns: Columns) -> Rows:
    values: list[object] = []
    numbers: list[int] = []
    beside: list[Mapping[str, object]] = []
    left_out: Counter[str] = Counter()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{where}: line {number}"
        try:
            row = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=place, hint="write one JSON object per line") from None
        if not isinstance(row, dict):
            raise DataError(f"holds {_kind(row)}, a JSON object is needed", where=place, hint="write one per line")
        field, names = columns.names(list(row), place)
        others = {name: row[name] for name in names if row[name] is not None}
        if "\\u" in line and not _encodable([row[field], others]):
            raise DataError(
                "half of a surrogate pair, which no text can hold", where=place, hint="write the character itself"
            )
        values.append(row[field])
        numbers.append(number)
        beside.append(others)
        if columns.beside:
            left_out.update(name for name, value in row.items() if value is not None and name not in {field, *names})
    return Rows(values, where, "line", numbers, beside, left_out)


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, columns: Columns) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            field, names = columns.names(present, path.name)
            table = file.read([field, *names])
            values, beside = table.column(field).to_pylist(), table.select(names).to_pylist() if names else ()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable Parquet file: {error}", where=path.name, hint="write the file again") from None
    return _table_rows(values, beside, path.name, columns, present)


def _table_rows(
    values: Sequence[object], beside: Sequence[Mapping[str, object]], where: str, columns: Columns, present: list[str]
) -> Rows:
    field, names = columns.names(present, where)
    others = [name for name in present if name not in {field, *names}] if columns.beside else []
    left_out = dict.fromkeys(others, len(values))
    return Rows(values, where, "row", range(1, len(values) + 1), beside, left_out)


def _pinned(name: str, subset: str | None, split: str | None) -> KnownDataset:
    if name in KNOWN_DATASETS:
        return KNOWN_DATASETS[name]
    repo_id, _, revision = name.partition("@")
    if repo_id.count("/") != 1 or not all(repo_id.split("/")) or not revision:
        raise UsageError(
            f"got {name!r}, accepted are a file ({', '.join(FILE_TYPES)}) or a Hub dataset namespace/name@revision",
            where="dataset",
            hint="pin the revision, for example Salesforce/wikitext@<commit hash>",
        )
    return KnownDataset(repo_id, revision, subset, split or "train")


def _read_hub(pinned: KnownDataset, columns: Columns, offline: bool) -> Rows:
    where = f"{pinned.repo_id}@{pinned.revision}"
    table = _load_hub(pinned, where, offline)
    field, names = columns.names(table.column_names, where)
    beside = table.select_columns(names) if names else ()
    return _table_rows(table[field], beside, where, columns, table.column_names)


def _load_hub(pinned: KnownDataset, where: str, offline: bool) -> Any:
    import datasets

    try:
        with replaced(datasets.config, "HF_HUB_OFFLINE", offline or datasets.config.HF_HUB_OFFLINE):
            builder = datasets.load_dataset_builder(
                pinned.repo_id, pinned.subset, revision=pinned.revision, data_files=pinned.data_files
            )
            _require_revision(builder, pinned.revision, where)
            builder.download_and_prepare()
            return builder.as_dataset(split=pinned.split)
    except datasets.exceptions.DatasetNotFoundError as error:
        hint = f"see https://huggingface.co/datasets/{pinned.repo_id}"
        raise HubError(str(error), where=where, hint=hint) from None
    except OSError as error:
        from llmcompress.hub.failures import unwritable_cache

        if refused := unwritable_cache(error, datasets.config.HF_DATASETS_CACHE, where):
            raise refused from error
        reason = "it is not in the local cache" if offline else "the Hub cannot be reached and the cache has no copy"
        raise HubError(
            f"{reason}: {error}",
            where=where,
            hint="run once with the network, or give a local .txt, .jsonl or .parquet file",
        ) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot be used: {error}",
            where=where,
            hint="check subset and split; datasets that need a script are not accepted",
        ) from None


def _require_revision(builder: Any, revision: str, where: str) -> None:
    # Without the network, datasets silently takes the newest cached copy, whatever its revision.
    from_cache = type(builder).__module__.endswith("packaged_modules.cache.cache")
    if from_cache and builder.hash != revision:
        raise HubError(
            f"the Hub was not asked and the newest cached copy is revision {builder.hash}",
            where=where,
            hint="run once with the network, or pin the full commit hash of the cached copy",
        )


def _kind(value: object) -> str:
    kinds = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number", "str": "a string"}
    return {**kinds, "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
