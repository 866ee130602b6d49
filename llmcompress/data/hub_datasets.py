"""Datasets of the Hub: data files alone, at a pinned revision. Nothing of them is executed."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmcompress.errors import DataError, HubError, UsageError
from llmcompress.spec.dataset import FILE_TYPES
from llmcompress.system.patching import replaced


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


_UNREACHABLE = "the Hub cannot be reached and the cache has no copy"
_WITHOUT_THE_HUB = "run once with the network, or give a local .txt, .jsonl or .parquet file"


def pinned_dataset(name: str, subset: str | None, split: str | None) -> KnownDataset:
    """What ``namespace/name@revision``, or a short name, stands for.

    Raises:
        UsageError: It is neither.
    """
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


def load_table(pinned: KnownDataset, where: str, offline: bool) -> Any:
    """Open a dataset, a ``datasets.Dataset``.

    Args:
        pinned: Which.
        where: Its name in messages.
        offline: Only what the local cache holds.

    Raises:
        DataError: It has no such subset or split, or is no plain data.
        HubError: It cannot be had.
        WriteError: The cache cannot be written.
    """
    import datasets
    import httpx

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
        reason = "it is not in the local cache" if offline else _UNREACHABLE
        raise HubError(f"{reason}: {error}", where=where, hint=_WITHOUT_THE_HUB) from None
    except (ValueError, RuntimeError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        # huggingface_hub closes its client after a failed connection and then tells of the closed client alone.
        from llmcompress.hub.failures import unreachable_reason

        if isinstance(error, httpx.HTTPError) or "client has been closed" in str(error):
            reason = unreachable_reason() or str(error)
            raise HubError(f"{_UNREACHABLE}: {reason}", where=where, hint=_WITHOUT_THE_HUB) from None
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
