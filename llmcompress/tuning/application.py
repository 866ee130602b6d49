"""What was found, put where it is used: a new artifact with runtime options, and a profile of the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from llmcompress.artifact import file_records, manifest_sha256, require_verified, staging, write_errors
from llmcompress.artifact.manifest import sealed
from llmcompress.errors import ArtifactError, LlmcompressError, UsageError
from llmcompress.graph.device import check_device, compile_model, effective_properties
from llmcompress.graph.model import number_nodes, read_ir, set_runtime_options
from llmcompress.loaders.layout import decoder_part, names_in
from llmcompress.report.compression import CompressionReport, runtime_options
from llmcompress.report.file_names import RECIPE, TUNE_REPORT, model_files
from llmcompress.report.record import FileRecord
from llmcompress.report.tuning import TuneReport, TuningOrigin
from llmcompress.spec import Recipe, Runtime, RuntimeProfile, dump_recipe
from llmcompress.spec.validation import from_options
from llmcompress.system.command_line import command_line
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.files import replace_file
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.progress import Progress


def read_tuning(directory: str | Path) -> TuneReport:
    """The report ``tune.json`` of an artifact, if it is of the bytes that lie there.

    Raises:
        ArtifactError: There is none, it cannot be read, or it was measured on other bytes.
    """
    directory = Path(directory)
    manifest = require_verified(directory)
    path = directory / TUNE_REPORT
    again = command_line(["llmcompress", "tune"], [directory.name])
    try:
        report = TuneReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError("there is none: nothing was tuned yet", where=str(path), hint=again) from None
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", where=str(path), hint=again) from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ArtifactError(f"cannot be read: {problem}", where=str(path), hint=again) from None
    if report.manifest_sha256 != manifest_sha256(directory):
        raise ArtifactError(
            f"the artifact was modified since it was measured: {TUNE_REPORT} is of manifest "
            f"{report.manifest_sha256[:12]}, there lies recipe {manifest.recipe.name} with "
            f"{manifest_sha256(directory)[:12]}",
            where=str(path),
            hint=again,
        )
    return report


@library_call
def apply_tuning(
    directory: str | Path, output_dir: str | Path, *, overwrite: bool = False, progress: ProgressOption = "auto"
) -> CompressionReport:
    """Write a new artifact with the same weights whose IR holds the runtime options that ``tune.json`` chose.

    What no plugin reads from a model is not in it: ``runtime_profile`` has that.

    Returns:
        The manifest that was written; ``tuning`` says where and for what the options were found.

    Raises:
        ArtifactError: The directory is no artifact, or was modified since it was measured.
        UsageError: Nothing was chosen, the device does not read an option from the model, or the output exists.
        WriteError: The output could not be written.
        LockedError: Another run writes the same output.
    """
    progress = reporter(progress)
    quiet_libraries()
    directory = Path(directory).absolute()
    report = read_tuning(directory)
    manifest = require_verified(directory)
    if not report.in_model:
        what = "what was chosen cannot be held by a model" if report.chosen else report.reason
        raise UsageError(
            f"nothing to put into the model: {what}",
            where=directory.name,
            hint="`profile_output` writes what was chosen as a runtime profile" if report.chosen else "",
        )
    check_device(report.spec.device)
    part = decoder_part(names_in(directory))
    written_anew = model_files(part)
    recipe = _with_options(manifest.recipe, report.in_model)
    with staging(output_dir, overwrite=overwrite, inputs=[directory]) as stage, write_errors(stage.target):
        progress(Progress("save", 0, 2))
        for record in manifest.files:
            if record.path not in (*written_anew, RECIPE):
                (stage.path / record.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / record.path, stage.path / record.path)
        (stage.path / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8", newline="\n")
        _save(directory, part, stage.path, runtime_options(recipe, manifest.layers))
        progress(Progress("save", 1, 2))
        _check_read_back(stage.path, part, report)
        files = file_records(stage.path)
        if _weights(files) != _weights(manifest.files):
            raise LlmcompressError("the weights would have changed", where=str(stage.target), hint="report this")
        written = manifest.model_copy(
            update={
                "recipe": recipe,
                "tuning": tuning_origin(report),
                "size_bytes": sum(record.size_bytes for record in files),
                "files": files,
            }
        )
        stage.publish(written)
        progress(Progress("save", 2, 2))
    return sealed(written)


def tuning_origin(report: TuneReport) -> TuningOrigin:
    """What the manifest of an artifact says that holds the chosen options."""
    found = report.verification
    assert found is not None
    return TuningOrigin(
        device=report.spec.device,
        device_name=report.device_name,
        cpu=report.environment.cpu,
        platform=report.environment.platform,
        objective=report.spec.objective,
        workloads=tuple(map(str, report.spec.workloads)),
        properties=report.in_model,
        gain=found.gain,
        kl_divergence=found.divergence.kl_divergence,
        default_kl_divergence=found.default_divergence.kl_divergence,
        reference_is_itself=report.reference.itself,
        profile=report.in_profile,
        tuned_manifest_sha256=report.manifest_sha256,
    )


def runtime_profile(report: TuneReport) -> RuntimeProfile | None:
    """What was chosen and a model cannot hold; None where that is nothing."""
    if not report.in_profile:
        return None
    return RuntimeProfile(
        name=f"{report.source}-{report.spec.device}",
        device=report.spec.device,
        cpu=report.environment.cpu,
        platform=report.environment.platform,
        properties=tuple(f"{name}={value}" for name, value in sorted(report.in_profile.items())),
    )


def write_profile(profile: RuntimeProfile, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a profile by one rename.

    Raises:
        UsageError: As ``check_profile_path``.
        WriteError: It could not be written.
    """
    path = check_profile_path(path, overwrite=overwrite)
    with write_errors(path):
        replace_file(path, (profile.model_dump_json(indent=2) + "\n").encode())


def check_profile_path(path: str | Path, *, overwrite: bool = False) -> Path:
    """Whether a profile may be written there; the absolute path.

    Raises:
        UsageError: Something is there that may not be replaced, or there is no directory for it.
    """
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise UsageError("its directory does not exist", where=str(path), hint=f"mkdir -p {Path(path).parent}")
    if target.exists() and not (overwrite and target.is_file()):
        raise UsageError("exists already", where=str(path), hint="`overwrite` replaces a file; or name another one")
    return target


def _with_options(recipe: Recipe, options: dict[str, str]) -> Recipe:
    """The recipe that makes such a model at once."""
    found = recipe.runtime.model_dump(exclude_none=True)
    given = {name.lower(): int(value) if name.endswith("_SIZE") else value for name, value in options.items()}
    precision = given.get("kv_cache_precision")
    if precision is not None:
        # As a property it was for keys and values alike, whatever the model held.
        for name in ("key_cache_precision", "value_cache_precision"):
            if name in found:
                found[name] = precision
        if {"key_cache_precision", "value_cache_precision"} <= {**found, **given}.keys():
            del given["kv_cache_precision"]
            found.pop("kv_cache_precision", None)
        if precision in ("f16", "bf16", "f32"):
            found = {name: value for name, value in found.items() if not name.endswith("cache_group_size")}
    return recipe.model_copy(update={"runtime": from_options(Runtime, {**found, **given})})


def _save(directory: Path, part: str, output: Path, options: dict[str, str]) -> None:
    import openvino as ov

    model = read_ir(directory, part)
    set_runtime_options(model, options)
    number_nodes(model)
    ov.save_model(model, output / model_files(part)[0], compress_to_fp16=False)


def _check_read_back(output: Path, part: str, report: TuneReport) -> None:
    """Refuse to ship options that the device does not find in the model."""
    expected = next(trial.effective for trial in report.trials if trial.properties == report.chosen)
    found = effective_properties(compile_model(read_ir(output, part), report.spec.device, {}))
    missing = [
        f"{name} is {found.get(name)}, {expected[name]} was measured"
        for name in sorted(report.in_model)
        if found.get(name) != expected.get(name)
    ]
    if missing:
        raise UsageError(
            f"the device does not find in the model what was measured: {'; '.join(missing)}",
            where=report.spec.device,
            hint="apply on the machine where it was tuned",
        )


def _weights(files: tuple[FileRecord, ...]) -> list[str]:
    return [file.sha256 for file in files if file.path.endswith("_model.bin")]
