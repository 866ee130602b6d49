"""What the library keeps for later runs and reads again: damaged or another's, it is as if it were not there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from llmcompress.errors import ArtifactError, ModelError

CONSTANT = '<layer id="0" name="a" type="Const"><data element_type="i8" shape="4" offset="0" size="4"/></layer>'
KEY = {"configuration": {"config": {"model_type": "llama"}}, "tensors": {"headers": []}}
NUMBERS = (3, 4)


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """The cache in the folder's output, in which nothing is held."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict("os.environ", {"LLMCOMPRESS_CACHE": str(folder / "out")}))
        for module in ("compression.replay.skeleton", "compression.replay.texts", "compression.nncf.statistics"):
            stack.enter_context(mock.patch(f"llmcompress.{module}.hold"))
        stack.enter_context(mock.patch("llmcompress.evaluation.score_cache.hold"))
        yield


def make_graph(folder: Path) -> None:
    """A kept graph of one constant."""
    from summary_fixture import write_model

    from llmcompress.artifact.manifest import read_manifest
    from llmcompress.compression.replay.skeleton import Keeping, KeptGraph, Skeleton, SkeletonConstant, write_graph

    report = read_manifest(write_model(folder / "model"))
    constants = (SkeletonConstant(size=4, kind="literal"),)
    skeleton = Skeleton(key=KEY, report=report, constants=constants, weights=(), sha256={})
    graph = KeptGraph(skeleton, f"<net>{CONSTANT}</net>".encode(), b"1234", b'{"model_type": "llama"}')
    with _cache_in(folder):
        keeping = Keeping(duration_s=1, processor_s=1, peak_rss_bytes=1, in_background=False)
        write_graph(folder / "out" / "graph", graph, keeping)


def read_graph(folder: Path) -> Any:
    from llmcompress.compression.replay.skeleton import read_graph, read_keeping, why_not_kept

    with _cache_in(folder):
        found = read_graph(folder / "out" / "graph", KEY)
        read_keeping(folder / "out" / "graph")
        assert why_not_kept(folder / "out" / "graph") is None
    if found is not None:
        assert (found.xml, found.literals) == (f"<net>{CONSTANT}</net>".encode(), b"1234")
        assert found.config == b'{"model_type": "llama"}'
        assert found.skeleton.key == KEY
        assert [constant.size for constant in found.skeleton.constants] == [4]
    return found


@cache
def _weight() -> Any:
    import numpy as np

    from llmcompress.graph.integer_weights import IntegerWeight

    codes = np.arange(64, dtype=np.int16).reshape(2, 1, 32) % 16
    scales = np.array([0.5, 2], np.float16).reshape(2, 1, 1)
    return IntegerWeight(codes, scales, np.array([7, 9], np.int16).reshape(2, 1, 1), "u4")


def make_candidate(folder: Path) -> None:
    """A finished weight of a search."""
    from llmcompress.searching.shelf import Shelf
    from llmcompress.spec.search import Format

    shelf, wanted = Shelf(folder), Format("int4_asym", 32, "gptq")
    shelf.keep("a", wanted, _weight())
    next(folder.glob("*.npz")).rename(folder / "candidate.npz")


def read_candidate(folder: Path) -> Any:
    import numpy as np

    from llmcompress.searching.shelf import Shelf
    from llmcompress.spec.search import Format

    with mock.patch.object(Shelf, "_path", return_value=folder / "candidate.npz"):
        found = Shelf(folder).get("a", Format("int4_asym", 32, "gptq"))
    if found is not None:
        assert found.element == "u4"
        for mine, theirs in zip(found[:3], _weight()[:3], strict=True):
            assert np.array_equal(mine, theirs)
    return found


def make_scores(folder: Path) -> None:
    """The scores of a batch of two windows."""
    import numpy as np

    from llmcompress.evaluation.score_cache import ScoreCache

    with _cache_in(folder):
        scores = [{"nll": np.array([1.0, 2.0], np.float32), "kl": np.array([0.5, 0.25])} for _ in NUMBERS]
        assert ScoreCache("evaluations", "key").add(NUMBERS, scores)


def read_scores(folder: Path) -> Any:
    from llmcompress.evaluation.score_cache import ScoreCache

    with _cache_in(folder):
        found = ScoreCache("evaluations", "key").get(NUMBERS)
    if found is not None:
        values = [{name: list(each) for name, each in scores.items()} for scores in found]
        assert values == [{"nll": [1, 2], "kl": [0.5, 0.25]}] * 2
    return found


@contextlib.contextmanager
def _statistics(folder: Path) -> Iterator[Path]:
    from llmcompress.compression.nncf.statistics import statistics
    from llmcompress.report.record import CalibrationRecord, Provenance

    provenance = Provenance(kind="checkpoint", model_type="llama", architecture="A", dtype="bf16", files=())
    calibration = CalibrationRecord(dataset="x.txt", num_windows=4, seq_len=8, seed=0, token_ids_sha256="c" * 64)
    key = mock.patch("llmcompress.compression.nncf.statistics.content_key", return_value="key")
    with _cache_in(folder), key, statistics(provenance, calibration, "f32") as directory:
        yield directory


def make_statistics(folder: Path) -> None:
    """Statistics of two layers."""
    with _statistics(folder) as directory:
        directory.mkdir()
        for name in ("one", "two"):
            (directory / name).write_bytes(name.encode() * 20)


def read_statistics(folder: Path) -> Any:
    with _statistics(folder) as directory:
        if directory.exists():
            for name in ("one", "two"):
                assert (directory / name).read_bytes() == name.encode() * 20
            assert {path.name for path in directory.iterdir()} == {"one", "two", "files.json"}
        return directory.exists()


def make_texts(folder: Path) -> None:
    """A converted tokenizer."""
    from llmcompress.compression.replay.texts import KeptTexts, TextsVerdict, _hashes, keep_texts

    files = {"tokenizer.json": b"{}", "openvino_tokenizer.xml": b"<net/>"}
    verdict = TextsVerdict(key="key", tokenizer="equal", chat_template="none", sha256=_hashes(files))
    with _cache_in(folder):
        keep_texts(KeptTexts(verdict, files))


def read_texts(folder: Path) -> Any:
    from llmcompress.compression.replay import texts

    source: Any = SimpleNamespace(path=folder, text_path=folder)
    with (
        _cache_in(folder),
        mock.patch.multiple(texts, texts_key=lambda *_, **__: "key", text_files=lambda _: (), side_files=lambda _: ()),
    ):
        found = texts.read_texts_of(source, tokenizer=True)
    if found is not None:
        kept = {"tokenizer.json": b"{}", "openvino_tokenizer.xml": b"<net/>"}
        # Of a verdict that names fewer of them, the others are left out.
        assert all(kept.get(name) == content for name, content in found.files.items())
    return found


@cache
def _learned() -> Any:
    import torch

    return torch.linspace(-1, 1, 64).reshape(8, 8)


def _course(folder: Path) -> Any:
    import torch

    from llmcompress.system.progress import silent
    from llmcompress.training.course import Course

    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    learnable: Any = SimpleNamespace(parameter=parameter, kind="weight", unit=1.0)
    training: Any = SimpleNamespace(rate=lambda _: 0.1)
    return Course("model", [learnable], training, 1, lambda _: 0.0, lambda: _learned(), folder / "state.pt", silent)


def make_state(folder: Path) -> None:
    """A training that was interrupted."""
    import torch

    from llmcompress.training import course

    made = _course(folder)
    optimizer = course._optimizer(made.learnables, made.training)
    state = course._begun(made, [torch.nn.Parameter(_learned())], optimizer)
    course._save(made, state._replace(step=5))


def read_state(folder: Path) -> Any:
    import torch

    from llmcompress.training import course

    made = _course(folder)
    parameters = [learnable.parameter for learnable in made.learnables]

    def in_memory(_: Any, parameters: Any) -> Any:
        return [torch.empty_like(each) for each in parameters]

    # What goes on from a state keeps its best one in a nameless file next to it: no writing into an input.
    with mock.patch.object(course, "_places", in_memory):
        found = course._restored(made, parameters, course._optimizer(made.learnables, made.training))
    if found is not None:
        assert found.step == 5
        assert torch.equal(parameters[0], _learned())
    return found


def make_teacher(folder: Path) -> None:
    """What an original said of two windows."""
    import numpy as np

    from llmcompress.system.progress import silent
    from llmcompress.training.teacher import ask

    ask(_Original(), np.arange(16).reshape(2, 8), 4, folder, silent)


class _Original:
    """Says the same of every token."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=16))

    def parameters(self) -> Any:
        return iter([_learned()])

    def __call__(self, token_ids: Any, use_cache: bool) -> Any:
        import torch

        return SimpleNamespace(logits=torch.nn.functional.one_hot(token_ids, 16).float())


def read_teacher(folder: Path) -> Any:
    import numpy as np

    from llmcompress.system.progress import silent
    from llmcompress.training.teacher import ask

    # Asked again where it is damaged: in a copy, as the folder's own files are not to be changed.
    place = folder / "out"
    place.mkdir(exist_ok=True)
    for path in folder.glob("teacher*"):
        (place / path.name).write_bytes(path.read_bytes())
    found = ask(_Original(), np.arange(16).reshape(2, 8), 4, place, silent)
    assert found.log_probabilities.shape == found.tokens.shape == (2, 8, 4)
    assert np.array_equal(found.tokens[..., 0].ravel(), np.arange(16))
    assert np.allclose(found.log_probabilities[..., 0], 1 - np.log(np.e + 15))
    return found


def make_sequences(folder: Path) -> None:
    """Hashes of what an artifact was trained on."""
    import numpy as np

    from llmcompress.data.disjoint import write_sequences

    write_sequences(folder, np.random.default_rng(0).integers(0, 1000, (2, 128)))


def read_sequences(folder: Path) -> Any:
    import numpy as np

    from llmcompress.data.disjoint import require_not_trained_on

    return require_not_trained_on(folder, [np.arange(128), np.arange(30)], "text")


def _tuned(folder: Path) -> None:
    from push_fixture import tuning
    from summary_fixture import write_model

    from llmcompress.artifact.reports import write_report

    write_report(write_model(folder / "made"), "tune.json", tuning(folder / "made"))


def _read_tuning(folder: Path) -> Any:
    from llmcompress.tuning.application import read_tuning

    found = read_tuning(folder / "made")
    assert found.manifest_sha256
    return found


def make_notes(folder: Path) -> None:
    """What a plan pushed and logged, beside an artifact."""
    from push_fixture import make_evaluated

    from llmcompress.artifact import read_measurements
    from llmcompress.runner.state import remember_logged, remember_push

    made = make_evaluated(folder / "made")
    remember_push(made, "acme/made", private=False)
    report = read_measurements(made).evaluation
    assert report is not None
    remember_logged(made, "mlflow", report)


def read_notes(folder: Path) -> Any:
    from llmcompress.runner.state import push_reason, unlogged

    made = folder / "made"
    reason = push_reason(made, "acme/made", private=False)
    assert reason in (None, "not pushed yet", "something changed since it was pushed")
    return reason, unlogged(made, "mlflow")


def make_searched(folder: Path) -> None:
    """An artifact that a search wrote."""
    from push_fixture import searched
    from summary_fixture import write_model

    from llmcompress.artifact.reports import write_report

    made = write_model(folder / "made")
    write_report(made, "search.json", searched(made))


def read_searched(folder: Path) -> Any:
    from llmcompress.publishing.card import render_card

    return render_card(folder / "made")


Spec = tuple[str, Callable[[Path], None], tuple[str, ...], Callable[[Path], Any], tuple[type[Exception], ...]]

DOORS: tuple[Spec, ...] = (
    (
        "kept graph", make_graph,
        ("out/graph/skeleton.json", "out/graph/openvino_model.xml", "out/graph/literals.bin", "out/graph/keeping.json"),
        read_graph, (),
    ),
    (
        "kept tokenizer", make_texts,
        ("out/tokenizers/key/verdict.json", "out/tokenizers/key/files/tokenizer.json"), read_texts, (),
    ),
    ("candidate", make_candidate, ("candidate.npz",), read_candidate, ()),
    ("scores", make_scores, ("out/evaluations/key/00000003.npz",), read_scores, ()),
    (
        "statistics", make_statistics, ("out/statistics/key/files.json", "out/statistics/key/one"), read_statistics,
        (),
    ),
    ("training state", make_state, ("state.pt",), read_state, ()),
    (
        "original's answers", make_teacher, ("teacher.npy", "teacher-tokens.npy", "teacher-is-whole"), read_teacher, (),
    ),
    ("trained sequences", make_sequences, ("training_sequences.npy",), read_sequences, (ModelError,)),
    ("tune.json", _tuned, ("made/tune.json",), _read_tuning, (ArtifactError,)),
    ("search.json", make_searched, ("made/search.json",), read_searched, (ArtifactError,)),
    ("notes of a plan", make_notes, (".made.push.json", ".made.log.json"), read_notes, (ArtifactError,)),
)  # fmt: skip
"""Name, what makes a valid one, the files that are changed, what reads it, and what that may say."""
