"""Every guard of the package with one slip in it, which a test must notice: mutation testing.

    PYTHONPATH=tests python tests/faults/mutants.py --state points.jsonl --limit-s 7200
    PYTHONPATH=tests python tests/faults/mutants.py --module artifact/output.py --at 1234567   # one again

The tests that judge a module are collected once. Each mutant is then put into the functions of a forked process, which
runs the tests that reach its line, the quickest first, and where none fails all the others. Processes that a test
starts import the mutant too. Those that no test can tell from the original are listed in ``equivalent_mutants.yaml``,
each with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import marshal
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from mutations import Module, Mutant
from points import Point, Points, add_arguments, table

TESTS = Path(__file__).parent.parent
PACKAGE = TESTS.parent / "llmcompress"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
FAULT = "T1: a slip in the code"
LIMIT_S = 20.0
"""For a mutant, next to five times what its tests take."""
PUSH_GATE = (
    "a_gate_that_is_not_passed", "a_gate_that_was_not_judged", "without_thresholds_a_push_has_its_own",
    "what_the_gate_objects_to_where_no_check_failed", "thresholds_of_the_evaluation_stand_for_those_of_a_push",
    "a_push_that_was_forced_says_so_on_the_card",
)  # fmt: skip
HUB = ("test_hub_cache.py",)
GATE = (
    "thresholds", "what_was_not_measured_does_not_pass", "a_value_at_its_limit_passes",
    "pictures_are_judged_by_their_own_threshold", "of_two_graphs_the_worse_one_counts",
    "the_least_favourable_verdict_counts", "verdicts_by_the_specs_margins",
    "every_token_has_to_have_a_probability", "without_thresholds_nothing_is_passed_and_a_failed_probe_still_fails",
    "reports_of_earlier_versions_are_read", "a_failed_check_stays_until_it_is_made_again",
    "a_runs_thresholds_go_before_the_recipes",
)  # fmt: skip
MODULES: dict[str, tuple[str, ...]] = {
    "artifact/placement.py": ("test_artifact_guards.py", "test_artifact.py"),
    "spec/access.py": ("test_access.py",),
    # The other tests of that file are of answers and chat templates.
    "evaluation/gate.py": tuple(f"test_gate.py::test_{name}" for name in GATE),
    "publishing/gate.py": tuple(f"test_push.py::test_{name}" for name in PUSH_GATE),
    "system/sealed.py": ("test_sealed.py",),
    "system/json_file.py": ("test_json_file.py",),
    "system/cache.py": ("test_cache.py",),
    "system/files.py": ("test_files.py",),
    "artifact/verification.py": ("test_artifact.py", "test_artifact_guards.py"),
    "artifact/manifest.py": ("test_artifact.py", "test_artifact_guards.py"),
    "artifact/failures.py": ("test_artifact_guards.py", "test_artifact.py"),
    "artifact/output.py": ("test_artifact.py", "test_artifact_guards.py"),
    "artifact/reports.py": ("test_reports.py", "test_artifact.py::test_a_report_is_put_in_place_or_the_old_one_stays"),
    "hub/cache.py": HUB,
    "hub/listing.py": HUB,
    "hub/failures.py": ("test_hub_failures.py",),
    "hub/client.py": ("test_hub_client.py",),
    "hub/patience.py": (
        "test_patience.py",
        "test_hub_client.py::test_a_transient_refusal_is_ours_before_the_library_tries_on_its_own",
    ),
    "hub/account.py": ("test_account.py",),
    "hub/download.py": ("test_download.py",),
    "hub/transfer.py": ("test_download.py",),
    "publishing/outgoing.py": ("test_outgoing.py",),
    "publishing/sandbox.py": ("test_sandbox.py",),
    "compression/replay/key.py": ("test_graph_key.py",),
    "compression/replay/content.py": ("test_graph_key.py",),
    "loaders/tensors.py": ("test_tensors.py",),
    "loaders/safetensors_file.py": ("test_tensors.py",),
}
"""Each guard, and the tests that judge it: under 20 s."""


class Reach(NamedTuple):
    """What a test takes, and which lines of the module it reaches."""

    seconds: float
    lines: frozenset[int]


class Asked(NamedTuple):
    """Which mutants are judged."""

    deadline: float = float("inf")
    at: int | None = None
    """The mutant of this number alone."""
    only_new: bool = False
    """Not those that lived when they were last judged."""


class Judge:
    """A plugin: in the place of pytest's loop over the tests it judges every mutant."""

    def __init__(self, module: str, points: Points, ask: Asked) -> None:
        self.module, self.points, self.ask = module, points, ask
        self.file = str(PACKAGE / module)
        self.source = Module(Path(self.file).read_text(encoding="utf-8"), self.file)
        self.equivalent = equivalent(module)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        terminal._tw._file = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
        reached = self._reached(session)
        if stale := self.equivalent.keys() - {mutant.name for mutant in self.source.mutants}:
            print(f"{self.module}: listed as equivalent, but there is no such mutant: {sorted(stale)}", flush=True)
        for mutant in filter(self._is_wanted, self.source.mutants):
            if time.monotonic() > self.ask.deadline:
                return True
            self._judge(session, mutant, reached)
        print(f"{self.module}: all judged", flush=True)
        return True

    def _is_wanted(self, mutant: Mutant) -> bool:
        if mutant.name in self.equivalent or self.ask.at not in (None, mutant.number):
            return False
        is_done = self.points.has if self.ask.only_new else self.points.has_survived
        return self.ask.at is not None or not is_done(self.module, FAULT, mutant.number)

    def _reached(self, session: pytest.Session) -> dict[str, Reach]:
        """Run all tests undisturbed, watching the module's lines.

        Raises:
            SystemExit: One fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "reached"

            def work() -> None:
                found, failed = {}, []
                for item in session.items:
                    lines: set[int] = set()
                    began = time.monotonic()
                    with watched(self.file, lines):
                        failed += [item.nodeid] if ran(session, [item]) else []
                    found[item.nodeid] = (time.monotonic() - began, sorted(lines))
                answer.write_text(json.dumps([found, failed]))

            forked(work, limit_s=1200)
            found, failed = json.loads(answer.read_text())
        if failed:
            raise SystemExit(f"{self.module}: tests fail undisturbed: {failed}")
        reached = {name: Reach(seconds, frozenset(lines)) for name, (seconds, lines) in found.items()}
        total = sum(each.seconds for each in reached.values())
        print(f"{self.module}: {len(self.source.mutants)} mutants, {len(reached)} tests in {total:.0f} s", flush=True)
        return reached

    def _judge(self, session: pytest.Session, mutant: Mutant, reached: dict[str, Reach]) -> None:
        code = self.source.code(mutant)
        items = sorted(
            session.items,
            key=lambda item: (mutant.line not in reached[item.nodeid].lines, reached[item.nodeid].seconds),
        )
        with tempfile.TemporaryDirectory() as folder:

            def work() -> None:
                os.environ |= {"MUTANT_CODE": f"{folder}/code", "MUTANT_MODULE": _dotted(self.module)}
                Path(folder, "code").write_bytes(marshal.dumps(code))
                try:
                    graft(code, _dotted(self.module))
                except Exception:  # A module that cannot be imported is noticed by every test.
                    os._exit(1)
                os._exit(1 if ran(session, items) else 0)

            status = forked(work, LIMIT_S + 5 * sum(each.seconds for each in reached.values()))
        wrong = [] if status else ["no test fails"]
        where = f"line {mutant.line}, {mutant.name}"
        self.points.add(Point(self.module, FAULT, mutant.number, where, status, [], [], wrong))


def equivalent(module: str) -> dict[str, str]:
    """Mutants that no test can tell from the original, each with its reason."""
    listed = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}
    return {name: reason for reason, names in (listed.get(module) or {}).items() for name in names}


def ran(session: pytest.Session, items: list[pytest.Item]) -> bool:
    """Run tests up to the first that fails; whether one did."""
    reports = _Reports()
    session.config.pluginmanager.register(reports)
    try:
        for number, item in enumerate(items):
            following = items[number + 1] if number + 1 < len(items) else None
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if reports.failed:
                return True
        return False
    finally:
        session.config.pluginmanager.unregister(reports)


class _Reports:
    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed


def forked(work: Any, limit_s: float) -> int:
    """Run in a forked process with folders of its own; its exit code, or minus the signal that ended it."""
    folder = tempfile.mkdtemp(prefix="llmcompress-mutant-")
    child = os.fork()
    if child == 0:
        os.setsid()
        tempfile.tempdir = folder
        os.environ |= {"TMPDIR": folder, "PYTEST_DEBUG_TEMPROOT": folder}
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    deadline = time.monotonic() + limit_s
    try:
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                return -signal.SIGKILL
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(ended[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def watched(file: str, lines: set[int]) -> Iterator[None]:
    """Note which lines of a file are run, in every thread."""

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return inside if frame.f_code.co_filename == file else None

    def inside(frame: FrameType, event: str, argument: object) -> Any:
        lines.add(frame.f_lineno)
        return inside

    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


def graft(code: CodeType, name: str) -> None:
    """Put what a changed source says into the functions, classes and constants of a module that is imported."""
    module = importlib.import_module(name)
    changed = ModuleType(name)
    changed.__dict__.update({key: module.__dict__[key] for key in ("__file__", "__package__", "__spec__")})
    exec(code, changed.__dict__)
    for key, new in list(vars(changed).items()):
        if not key.startswith("__"):
            _graft(module, key, new, code.co_filename)


def _graft(holder: Any, key: str, new: Any, file: str) -> None:
    old = vars(holder).get(key)
    pairs = list(zip(_functions(old), _functions(new), strict=False))
    for function, changed in pairs:
        if changed.__code__.co_filename == file:
            function.__code__ = changed.__code__
            function.__defaults__, function.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__
    if pairs:
        return
    if isinstance(old, type) and isinstance(new, type):
        for inner, value in list(vars(new).items()):
            if not inner.startswith("__") or isinstance(value, FunctionType):
                _graft(old, inner, value, file)
    elif type(new).__eq__ is not object.__eq__ and not isinstance(new, ModuleType) and new != old:
        _rebind(holder, key, old, new)


def _rebind(holder: Any, key: str, old: Any, new: Any) -> None:
    """Put a constant in the place of another, wherever that was imported to."""
    if isinstance(holder, type):
        if not isinstance(vars(holder).get("_fields"), tuple) and not key.startswith("_abc"):
            setattr(holder, key, new)
        return
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get(key) is old:
            vars(module)[key] = new
    vars(holder)[key] = new


def _functions(value: Any) -> list[FunctionType]:
    """The function that something is, or that a decorator, a property or a method was made of."""
    if isinstance(value, property):
        return [each for each in (value.fget, value.fset) if isinstance(each, FunctionType)]
    value = getattr(value, "__func__", value)
    value = getattr(value, "func", value) if type(value).__name__ == "cached_property" else value
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return [value] if isinstance(value, FunctionType) else []


def _dotted(module: str) -> str:
    return "llmcompress." + module.removesuffix(".py").replace("/", ".")


def judged(module: str, points: Points, ask: Asked) -> None:
    """Judge the mutants of one module, in a process of its own: what one module's tests import another's do not."""

    def work() -> None:
        tests = [str(TESTS / each) for each in MODULES[module]]
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=60", *tests]
        os._exit(int(pytest.main(options, plugins=[Judge(module, points, ask)])))

    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            sys.stderr.flush()
            os._exit(1)
    os.waitpid(child, 0)


def main() -> None:
    """Judge, and print the counts; exit code 1 where a mutant lives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", nargs="*", choices=list(MODULES), help="default: all")
    parser.add_argument("--at", type=int, help="the mutant of this number alone")
    add_arguments(parser, "mutant")
    parser.add_argument("--new", action="store_true", help="leave out those that lived when they were last judged")
    args = parser.parse_args()
    ask = Asked(time.monotonic() + args.limit_s, args.at, args.new)
    with tempfile.TemporaryDirectory(prefix="llmcompress-mutants-") as folder:
        state = args.state or Path(folder) / "points.jsonl"
        importer = Path(folder) / "importer"
        importer.mkdir()
        (importer / "sitecustomize.py").write_text(IMPORTER)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(importer), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        for module in args.module or MODULES:
            judged(module, Points(state), ask)
        points = Points(state)
    print(table(points.all))
    sys.exit(0 if all(point.survived for point in points.all) else 1)


IMPORTER = """\
import importlib.abc, importlib.util, marshal, os, sys

class _Loader(importlib.abc.Loader):
    def __init__(self, code):
        self.code = code
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(self.code, module.__dict__)

class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != os.environ.get("MUTANT_MODULE"):
            return None
        with open(os.environ["MUTANT_CODE"], "rb") as file:
            code = marshal.loads(file.read())
        spec = importlib.util.spec_from_loader(name, _Loader(code), origin=code.co_filename)
        spec.has_location = True
        return spec

if "MUTANT_CODE" in os.environ:
    sys.meta_path.insert(0, _Finder())
"""
"""What a process that a test starts imports first: it finds the mutant in the place of the module."""


if __name__ == "__main__":
    main()
