"""Dataset name or file -> documents.

A ``.txt`` file is one document; a line of a ``.jsonl`` file, a row of a ``.parquet`` file or of a Hub dataset is one
document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.encoding import decode
from llmcompress.data.hub_datasets import KnownDataset, load_table, pinned_dataset
from llmcompress.errors import DataError, UsageError
from llmcompress.spec.dataset import BUNDLED, FILE_TYPES, is_file_name

if TYPE_CHECKING:
    from llmcompress.spec import Dataset

BUNDLED_TEXT = Path(__file__).with_name("heldout.txt")
"""English prose of Python's documentation, which comes with the package; the bundled checkpoint never saw it."""
MAX_FILE_BYTES = 1 << 30
"""Local files are read as a whole; a calibration needs some megabytes."""


class Columns(NamedTuple):
    """What is read of a row."""

    fields: tuple[str, ...]
    """The first of these that is there holds the document."""
    beside: tuple[str, ...] = ()
    """Of these all that are there are read too."""
    hint: str = "set text_field to one of them"
    """What to do where none of ``fields`` is there."""

    def field(self, present: Collection[str], where: str) -> str:
        """The field that holds the document, of those that are there.

        Raises:
            DataError: There is none.
        """
        found = next((name for name in self.fields if name in present), None)
        if found is None:
            raise DataError(
                f"no field {' or '.join(map(repr, self.fields))}, there are: {', '.join(map(repr, present)) or 'none'}",
                where=where,
                hint=self.hint,
            )
        return found

    def names(self, present: Collection[str], where: str) -> list[str]:
        """All that is read, of what is there; raises as ``field``."""
        field = self.field(present, where)
        return [field, *(name for name in self.beside if name in present and name != field)]


class Rows(NamedTuple):
    """The rows of one dataset as they are stored."""

    records: Sequence[Mapping[str, Any]]
    columns: Columns
    where: str
    """The dataset's name in messages."""
    unit: str
    numbers: Sequence[int]
    """Line or row number of each record, for messages."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Other fields, where more than the document was asked for, and how many rows have them."""

    @property
    def has_schema(self) -> bool:
        """Whether all rows have the same fields, of which those that a row lacks are null."""
        return self.unit == "row"

    def place(self, index: int) -> str:
        """Where the document at ``index`` stands, as ``file.jsonl: line 3``."""
        return f"{self.where}: {self.unit} {self.numbers[index]}"

    def value(self, index: int) -> Any:
        """The document at ``index`` as it is stored."""
        record = self.records[index]
        return record[self.columns.field(record, self.where)]

    def beside(self, index: int) -> dict[str, Any]:
        """What else was asked for of the row at ``index``, as far as it has it."""
        record = self.records[index]
        field = self.columns.field(record, self.where)
        return {name: value for name, value in record.items() if name != field and value is not None}


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
            dataset ``namespace/name@revision``, a name of ``KNOWN_DATASETS``, or ``bundled``.
        subset: A Hub dataset's configuration.
        split: A Hub dataset's split.
        text_field: The field or column that holds the text.
        offline: Only what the local cache holds.

    Raises:
        UsageError: neither a file of a known kind nor a pinned Hub name.
        DataError: the file or a row cannot be used, or the dataset has no such subset, split or field.
        HubError: the Hub cannot be reached or has no such dataset.
    """
    yield from texts_of(read_rows(dataset, Columns((text_field,)), subset=subset, split=split, offline=offline))


def fetch_text(dataset: Dataset, *, offline: bool = False) -> None:
    """Bring the Hub dataset that ``dataset`` names into the local cache; errors as in :func:`read_texts`."""
    if dataset.dataset_path() is None and dataset.dataset != BUNDLED:
        pinned = pinned_dataset(dataset.dataset, dataset.subset, dataset.split)
        load_table(pinned, f"{pinned.repo_id}@{pinned.revision}", offline)


def require_text(dataset: Dataset) -> None:
    """Raise DataError now if the local file that ``dataset`` names is not there; nothing is read."""
    path = dataset.dataset_path()
    if path is not None and not path.is_file():
        raise DataError("no such file", where=path.name, hint=f"check the path {path}")


def text_of(rows: Rows, index: int) -> str:
    """The document at ``index``, which must be a string."""
    value = rows.value(index)
    if not isinstance(value, str):
        raise DataError(
            f"the text field holds {_kind(value)}, a string is needed",
            where=rows.place(index),
            hint="set text_field to the field with the text",
        )
    return value


def texts_of(rows: Rows) -> Iterator[str]:
    """All documents; each must be a string."""
    return (text_of(rows, index) for index in range(len(rows.records)))


def read_rows(dataset: str | Path, columns: Columns, *, subset: str | None, split: str | None, offline: bool) -> Rows:
    """Read what ``columns`` names, a ``.txt`` file as a whole. Errors as in :func:`read_texts`."""
    if isinstance(dataset, Path) or is_file_name(dataset):
        rows = _read_file(Path(dataset), columns)
    elif dataset == BUNDLED:
        rows = _read_file(BUNDLED_TEXT, columns)
    else:
        rows = _read_hub(pinned_dataset(dataset, subset, split), columns, offline)
    if not len(rows.records):
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
    return Rows([{columns.fields[0]: text}] if text.strip() else [], columns, where, "document", [1])


def _read_jsonl(text: str, where: str, columns: Columns) -> Rows:
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
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
        record = {name: row[name] for name in columns.names(row, place)}
        if "\\u" in line:
            require_encodable(json.dumps(record, ensure_ascii=False), place)
        records.append(record)
        numbers.append(number)
        if columns.beside:
            left_out.update(name for name, value in row.items() if name not in record and value is not None)
    return Rows(records, columns, where, "line", numbers, left_out)


def require_encodable(text: str, place: str) -> None:
    """Refuse what JSON can write and UTF-8 cannot.

    Raises:
        DataError: Names the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            "half of a surrogate pair, which no text can hold", where=place, hint="write the character itself"
        ) from None


def _read_parquet(path: Path, columns: Columns) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            records = file.read(columns.names(present, path.name)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable Parquet file: {error}", where=path.name, hint="write the file again") from None
    return _of_table(records, columns, path.name, present)


def _read_hub(pinned: KnownDataset, columns: Columns, offline: bool) -> Rows:
    where = f"{pinned.repo_id}@{pinned.revision}"
    table = load_table(pinned, where, offline)
    records = table.select_columns(columns.names(table.column_names, where))
    return _of_table(records, columns, where, table.column_names)


def _of_table(records: Sequence[Mapping[str, Any]], columns: Columns, where: str, present: Sequence[str]) -> Rows:
    others = set(present) - set(columns.names(present, where)) if columns.beside else set()
    left_out = dict.fromkeys(others, len(records))
    return Rows(records, columns, where, "row", range(1, len(records) + 1), left_out)


def _kind(value: object) -> str:
    kinds = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number", "str": "a string"}
    return {**kinds, "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
