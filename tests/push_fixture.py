"""Small artifacts with reports, and a Hub that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artifact_fixture import contents, manifest_for
from fake_hub import FakeHub, Repo
from summary_fixture import environment, estimate
from test_cli import EVALUATION, SPEED

from llmcompress.artifact import manifest_sha256, staging, write_report
from llmcompress.report.evaluation import Check, EvalReport, GateRecord
from llmcompress.report.search import Contender, FrontPoint, SearchReport, WeightChoice
from llmcompress.report.tuning import TuneReport, TuningReference
from llmcompress.spec import Gate, Recipe, SearchSpec, TuneSpec

TOKEN = "hf_canarycanarycanarycanarycanarycanar"


def make_artifact(
    output: Path, *, seed: int = 1, gate: Gate | None = None, size: int = 2000, more: dict[str, bytes] | None = None
) -> Path:
    with staging(output, overwrite=output.exists()) as staged:
        for name, content in {**contents(seed, size), **(more or {})}.items():
            path = staged.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        manifest = manifest_for(staged.path)
        staged.publish(
            manifest.model_copy(
                update={"recipe": Recipe(name="none", method="none", **({"gate": gate} if gate else {}))}
            )
        )
    return output


def evaluation(directory: Path, passed: bool | None = True, *checks: Check, digest: str | None = None) -> EvalReport:
    model = EVALUATION.model.model_copy(update={"manifest_sha256": digest or manifest_sha256(directory)})
    gate = GateRecord.model_validate({"passed": passed, "checks": checks})
    return EVALUATION.model_copy(update={"model": model, "gate": gate})


def tuning(directory: Path) -> TuneReport:
    """A search that found nothing better than the default."""
    reference = TuningReference(itself=True, provenance=EVALUATION.model.provenance, properties={})
    return TuneReport(
        llmcompress_version="1",
        spec=TuneSpec(dataset="text.txt"),
        source=directory.name,
        manifest_sha256=manifest_sha256(directory),
        device_name="CPU",
        text=EVALUATION.text,
        reference=reference,
        max_kl=0.001,
        gate=None,
        trials=(),
        skipped={},
        out_of_time=False,
        verification=None,
        chosen={},
        permitted=True,
        reason="nothing is faster",
        in_model={},
        in_profile={},
        environment=EVALUATION.environment,
        measured=EVALUATION.measured,
    )


def searched(directory: Path) -> SearchReport:
    """A search for the formats of weights without a rival."""
    plan = Contender(
        name="searched", kind="searched", size_bytes=1000, predicted_kl=0.01, kl_divergence=estimate(0.01),
        top1_agreement=estimate(0.9),
    )  # fmt: skip
    weight = WeightChoice(name="a", num_parameters=10, format="int4_sym:32", size_bytes=5, kl_divergence=0.01)
    return SearchReport(
        llmcompress_version="1", spec=SearchSpec(dataset="text.txt", bits_per_weight=4.5),
        manifest_sha256=manifest_sha256(directory),
        text=EVALUATION.text, num_sensitivity_tokens=100, num_parameters=1000, contenders=(plan,), gain=None,
        chosen="searched", reason="there is no rival", weights=(weight,),
        front=(FrontPoint(size_bytes=1000, kl_divergence=0.01),), environment=environment(),
        measured=EVALUATION.measured,
    )  # fmt: skip


def make_evaluated(output: Path, **options: Any) -> Path:
    """An artifact that a push takes: what it lost was measured."""
    directory = make_artifact(output, **options)
    write_report(directory, "eval.json", evaluation(directory))
    return directory


def add_reports(directory: Path) -> Path:
    write_report(directory, "eval.json", evaluation(directory))
    write_report(directory, "bench.json", SPEED.model_copy(update={"manifest_sha256": manifest_sha256(directory)}))
    return directory


def card(directory: Path, repo_id: str | None) -> str:
    return f"---\nlicense: mit\n---\n# {repo_id or directory.name}\n{manifest_sha256(directory)}\n"


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def model_of(directory: Path, repo_id: str = "acme/model") -> dict[str, bytes]:
    """What a repository should hold of a model; its card speaks of the repository."""
    return {**files_of(directory), "README.md": card(directory, repo_id).encode()}


def held(repo: Repo) -> dict[str, bytes]:
    """What a reader of the main branch sees, apart from what the Hub puts there."""
    return {name: content for name, content in repo.head.files.items() if name != ".gitattributes"}


def commits(hub: FakeHub, repo_id: str) -> int:
    """Commits of the main branch."""
    repo, count = hub.repos[repo_id], 0
    sha: str | None = repo.refs["main"]
    while sha is not None:
        sha, count = repo.commits[sha].parent, count + 1
    return count


def pushed(directory: Path, repo_id: str | None = "acme/model", **options: Any) -> Any:
    import llmcompress

    return llmcompress.push_to_hub(directory, repo_id, render=card, **options)
