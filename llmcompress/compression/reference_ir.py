"""The uncompressed model as an OpenVINO IR, made once: what a checkpoint is measured as."""

from __future__ import annotations

from llmcompress.loaders.source import identity, resolve
from llmcompress.spec import Access
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_SCORES, installed_versions, quiet_libraries
from llmcompress.system.files import short_name
from llmcompress.system.progress import Reporter, silent


def reference_ir(
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    progress: Reporter = silent,
) -> str:
    """Return what to run in place of a source: itself where it is an OpenVINO IR, else the directory of one.

    A checkpoint is converted without compression, once. A Hub source is known by its commit, a directory by its files'
    names, sizes and times of change.

    Raises: what ``resolve`` and ``compress`` raise.
    """
    quiet_libraries()
    found = resolve(source, Access(revision, trust_remote_code, offline))
    if found.layout == "ir":
        return found.id or str(found.path)
    key = content_key({"source": identity(found), "versions": installed_versions(PACKAGES_THAT_DECIDE_SCORES)})
    # The last part is what reports call the model.
    name = short_name((found.id or found.path.name).rsplit("/", 1)[-1])
    output = cache_dir() / "reference-ir" / key / f"{name}-none-ov"
    hold(output.parent)
    if not output.exists():
        from llmcompress.compression.compress import compress

        compress(
            source,
            "none",
            output,
            revision=revision,
            trust_remote_code=trust_remote_code,
            offline=offline,
            progress=progress,
        )
    return str(output)
