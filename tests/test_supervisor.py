import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
import supervisor_fixture

from llmcompress.errors import InterruptedRunError, KilledForMemoryError, LlmcompressError, ModelError
from llmcompress.system.memory import Memory, is_refusal
from llmcompress.system.process import end_waiting, run_supervised, waiting_bytes
from llmcompress.system.progress import Progress
from llmcompress.system.standing import StandingWorker
from llmcompress.system.starting import Death, explain

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def call(name: str, **kwargs: object) -> object:
    return run_supervised(getattr(supervisor_fixture, name), kwargs)


def test_returns_the_result_from_another_process() -> None:
    assert call("add", a=2, b=3) == 5
    assert call("count", upto=0) != os.getpid()


def test_arguments_are_found_out_while_the_worker_starts() -> None:
    assert run_supervised(supervisor_fixture.add, lambda: {"a": 2, "b": 3}, first_import="json.decoder") == 5
    # A module that cannot be imported is the matter of the call that needs it.
    assert run_supervised(supervisor_fixture.add, {"a": 2, "b": 3}, first_import="no_such.module") == 5

    def refuse() -> dict[str, int]:
        raise ModelError("refused", hint="none")

    before = psutil.Process().children()
    with pytest.raises(ModelError, match="refused"):
        run_supervised(supervisor_fixture.add, refuse)
    assert psutil.Process().children() == before


def test_a_worker_that_was_left_is_taken_once() -> None:
    before = psutil.Process().children()
    first = run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="leave")
    (waiting,) = set(psutil.Process().children()) - set(before)
    assert waiting.pid == first
    assert waiting_bytes() > 0 or sys.platform != "linux"
    seen: list[Progress] = []
    assert run_supervised(supervisor_fixture.count, {"upto": 2}, progress=seen.append, waiting="take") == first
    assert [step.done for step in seen] == [1, 2]
    assert waiting_bytes() == 0
    assert run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="take") != first
    assert psutil.Process().children() == before


def test_a_worker_that_was_left_is_not_used_for_anything_else() -> None:
    before = psutil.Process().children()
    first = run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="leave")
    assert run_supervised(supervisor_fixture.count, {"upto": 1}) != first
    assert psutil.Process().children() == before
    first = run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="leave")
    # It writes to where its first caller looks.
    assert run_supervised(supervisor_fixture.count, {"upto": 1}, logs=print, waiting="take") != first
    run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="leave")
    end_waiting()
    assert psutil.Process().children() == before


@posix
def test_a_worker_that_was_left_and_died_is_replaced() -> None:
    first = run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="leave")
    psutil.Process(first).kill()
    psutil.Process(first).wait()
    assert run_supervised(supervisor_fixture.count, {"upto": 1}, waiting="take") != first
    with pytest.raises(ModelError):
        run_supervised(supervisor_fixture.raise_model_error, {}, waiting="leave")
    assert waiting_bytes() == 0


def test_progress_arrives_complete_in_order_and_in_this_thread() -> None:
    seen: list[tuple[Progress, int]] = []
    run_supervised(
        supervisor_fixture.count, {"upto": 500}, progress=lambda event: seen.append((event, threading.get_ident()))
    )
    assert [event for event, _ in seen] == [Progress("counting", n, 500, "numbers") for n in range(1, 501)]
    assert {thread for _, thread in seen} == {threading.get_ident()}


def test_a_result_larger_than_a_pipe_arrives() -> None:
    assert call("big", num_bytes=5_000_000) == b"x" * 5_000_000


def test_library_output_reaches_the_log_and_not_our_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    assert run_supervised(supervisor_fixture.chatter, {}, logs=lines.append) == "result"
    assert sorted(lines) == ["from C, on descriptor 1", "on stderr", "on stdout, as libraries do"]
    assert call("chatter") == "result"
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_worker_reads_nothing_from_our_stdin() -> None:
    assert call("listen_to_stdin") == "-c"


def test_telemetry_is_off_in_the_worker() -> None:
    assert call("modules_and_environment") == (None, "1")


def test_our_errors_arrive_whole() -> None:
    with pytest.raises(ModelError) as caught:
        call("raise_model_error")
    assert (caught.value.message, caught.value.where, caught.value.hint) == (
        "tensor a has NaN",
        "model.safetensors",
        "--allow-nonfinite",
    )


def test_a_library_error_keeps_its_type_and_its_traceback() -> None:
    with pytest.raises(ValueError, match="from a library") as caught:
        call("raise_value_error")
    assert "in raise_value_error" in caught.value.__notes__[0]


def test_an_error_that_cannot_travel_is_named() -> None:
    with pytest.raises(LlmcompressError, match=r"^UnpicklableError: cannot travel"):
        call("raise_unpicklable")
    with pytest.raises(Exception, match=r"(?i)pickle"):
        call("return_unpicklable")


def test_an_error_of_a_library_that_is_slow_to_import_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_library.py").write_text("import time\ntime.sleep(3)\nclass ForeignError(Exception): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LlmcompressError, match=r"^ForeignError: the real cause") as caught:
        call("raise_foreign", directory=tmp_path)
    assert caught.value.message == "ForeignError: the real cause"
    assert "slow_library" not in sys.modules
    assert "slow_library.ForeignError: the real cause" in caught.value.__notes__[0]


def test_a_result_that_is_slow_to_unpickle_is_waited_for() -> None:
    assert isinstance(call("slow_result"), supervisor_fixture.SlowResult)


def test_a_function_of_an_unknown_module_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    here_only = types.ModuleType("no_such_module")
    exec("def f(progress): ...", vars(here_only))
    monkeypatch.setitem(sys.modules, "no_such_module", here_only)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_supervised(here_only.f, {})


def test_a_refused_allocation_is_a_memory_error_with_a_remedy() -> None:
    with pytest.raises(KilledForMemoryError, match=r"an allocation was refused; the worker had reached \d\.\d\d GB"):
        call("raise_memory_error")
    with pytest.raises(KilledForMemoryError, match=r"the worker got no more memory: peak .* GB") as caught:
        call("abort_for_memory")
    assert "needs less" in caught.value.hint


def test_a_refusal_in_a_librarys_words_is_one() -> None:
    import numpy as np
    import torch

    with pytest.raises(KilledForMemoryError, match=r"an allocation was refused; the worker had reached \d\.\d\d GB"):
        call("raise_refusal", text="Exception from src/core: std::bad_alloc")
    with pytest.raises(ModelError, match="cannot be converted"):
        call("raise_refusal", text="std::bad_function_call")
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as refused:
            allocate()
        assert is_refusal(refused.value)
    with pytest.raises(ZeroDivisionError) as other:
        _ = 1 / 0
    other.value.__context__ = other.value
    assert not is_refusal(other.value)


def test_a_library_that_exits_is_an_error() -> None:
    with pytest.raises(LlmcompressError, match="a library ended the worker with exit code 5"):
        call("system_exit")
    with pytest.raises(LlmcompressError, match=r"the worker exited with 3 .*and wrote nothing"):
        call("leave")


@posix
def test_a_crash_names_its_signal_the_stage_and_the_last_lines() -> None:
    with pytest.raises(LlmcompressError) as caught:
        call("end_with", number=int(signal.SIGBUS))
    assert "the worker crashed with SIGBUS in stage 'scan'" in caught.value.message
    assert "its last lines:\n  | the last words" in caught.value.message
    assert (caught.value.exit_code, "doctor" in caught.value.hint) == (1, True)


@linux
def test_a_sigkill_that_the_kernel_did_not_count_is_only_possibly_memory() -> None:
    with pytest.raises(LlmcompressError) as caught:
        call("end_with", number=int(signal.SIGKILL))
    assert "was killed (SIGKILL) in stage 'scan', possibly for its memory: peak 0.0" in caught.value.message
    assert not isinstance(caught.value, KilledForMemoryError)


DEATH = Death(-9, "compress", 1_500_000_000, Memory(8_000_000_000, 0, 8_000_000_000), 0, ())


@pytest.mark.parametrize(
    "death",
    [
        DEATH._replace(kills=1),
        DEATH._replace(kills=None),
        DEATH._replace(peak_rss_bytes=7_900_000_000),
    ],
    ids=["kernel counted", "kernel does not count", "near the limit"],
)
def test_a_sigkill_with_evidence_is_put_down_to_memory(death: Death) -> None:
    error = explain(death)
    assert isinstance(error, KilledForMemoryError)
    assert error.exit_code == 10
    peak = death.peak_rss_bytes / 1e9
    assert error.message == (
        f"the operating system killed the worker for its memory in stage 'compress': peak {peak:.2f} GB, limit 8.00 GB"
    )
    assert "--dry-run" in error.hint


def test_a_signal_without_a_name_and_an_unknown_peak_are_told() -> None:
    error = explain(DEATH._replace(returncode=-63, peak_rss_bytes=0, memory=Memory(10**9, 0, None)))
    assert "crashed with signal 63" in error.message
    assert "(peak unknown, machine 1.00 GB)" in error.message


@linux
def test_a_kill_by_a_control_group_is_reported_with_peak_and_limit() -> None:
    group = Path("/sys/fs/cgroup/memory") / f"llmcompress-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200_000_000))
    except OSError as error:
        pytest.skip(f"no writable version 1 memory control group here: {error}")
    program = (
        "import os, json\n"
        f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "import supervisor_fixture\nfrom llmcompress.system.process import end_waiting, run_supervised, waiting_bytes\n"
        "try: run_supervised(supervisor_fixture.allocate, {'num_bytes': 400_000_000})\n"
        "except Exception as error: print(json.dumps([type(error).__name__, error.message]))\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_importable())
    finally:
        for _ in range(50):
            if not (group / "cgroup.procs").read_text():
                break
            time.sleep(0.1)
        group.rmdir()
    assert done.returncode == 0, done.stderr
    kind, message = json.loads(done.stdout)
    assert kind == "KilledForMemoryError"
    found = re.search(r"in stage 'filling': peak (\d\.\d\d) GB, limit 0.20 GB", message)
    assert found is not None, message
    assert 0.15 < float(found[1]) < 0.3


@posix
def test_a_grandchild_that_holds_the_pipe_does_not_hold_us() -> None:
    began = time.monotonic()
    with pytest.raises(LlmcompressError, match="exited with 3"):
        call("leave_a_grandchild")
    assert time.monotonic() - began < 45, "the grandchild lives for 60 seconds"


def test_a_reporter_that_raises_ends_the_worker(tmp_path: Path) -> None:
    def refuse(event: Progress) -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        run_supervised(supervisor_fixture.write_then_wait, {"directory": tmp_path}, progress=refuse)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "staging").exists()


def _importable() -> dict[str, str]:
    paths = [str(Path(supervisor_fixture.__file__).parent), str(Path(__file__).parent.parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


PARENT = """
import json, sys
from pathlib import Path
import supervisor_fixture
from llmcompress.system import process
process.GRACE_S = float(sys.argv[3])
stages = []
def report(event):
    stages.append(event.stage)
    (Path(sys.argv[2]) / event.stage).touch()
try:
    result = process.run_supervised(getattr(supervisor_fixture, sys.argv[1]), {"directory": Path(sys.argv[2])},
                                    progress=report)
except Exception as error:
    print(json.dumps([type(error).__name__, error.exit_code, error.message, stages]))
"""


def _parent(name: str, directory: Path, grace_s: float = 10) -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, name, str(directory), str(grace_s)],
        stdout=subprocess.PIPE,
        text=True,
        env=_importable(),
        start_new_session=True,
    )
    for _ in range(1200):
        if (directory / "pid").exists() and (directory / "pid").read_text():
            return parent, int((directory / "pid").read_text())
        time.sleep(0.05)
    parent.kill()
    raise AssertionError("the worker did not start within a minute")


@posix
@pytest.mark.parametrize(
    ("number", "by", "whole_group"),
    [(signal.SIGTERM, "SIGTERM", False), (signal.SIGINT, "Ctrl-C", True), (signal.SIGHUP, "SIGHUP", True)],
)
def test_a_signal_stops_the_worker_which_cleans_up(
    tmp_path: Path, number: signal.Signals, by: str, whole_group: bool
) -> None:
    parent, worker = _parent("write_then_wait", tmp_path)
    (os.killpg if whole_group else os.kill)(parent.pid, number)
    kind, exit_code, message, _ = json.loads(parent.communicate(timeout=30)[0])
    assert (kind, exit_code) == ("InterruptedRunError", 128 + number)
    assert message == f"interrupted by {by}; nothing was left behind"
    assert not (tmp_path / "staging").exists()
    assert not psutil.pid_exists(worker)


@posix
def test_a_worker_that_does_not_stop_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    parent, worker = _parent("ignore_sigterm", tmp_path, grace_s=1)
    os.kill(parent.pid, signal.SIGTERM)
    kind, exit_code, message, stages = json.loads(parent.communicate(timeout=30)[0])
    assert (kind, exit_code) == ("InterruptedRunError", 143)
    assert "did not stop by itself and was killed: the output is untouched" in message
    assert stages == ["stopping"]
    assert not psutil.pid_exists(worker)


@posix
def test_a_second_ctrl_c_kills_at_once(tmp_path: Path) -> None:
    parent, _ = _parent("ignore_sigterm", tmp_path, grace_s=60)
    os.kill(parent.pid, signal.SIGINT)
    while not (tmp_path / "stopping").exists():
        assert parent.poll() is None
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGINT)
    assert json.loads(parent.communicate(timeout=30)[0])[:2] == ["InterruptedRunError", 130]


@posix
def test_an_interruption_that_came_too_late_says_that_the_work_is_done(tmp_path: Path) -> None:
    parent, _ = _parent("finish_when_told", tmp_path)
    os.kill(parent.pid, signal.SIGTERM)
    assert "the work was already done: its output is complete" in json.loads(parent.communicate(timeout=30)[0])[2]


@posix
def test_a_worker_that_is_told_to_stop_by_others_says_so(tmp_path: Path) -> None:
    def terminate(event: Progress) -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="ended by SIGTERM") as caught:
        run_supervised(supervisor_fixture.write_then_wait, {"directory": tmp_path}, progress=terminate)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "staging").exists()


@posix
def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    parent, worker = _parent("ignore_sigterm", tmp_path)
    process = psutil.Process(worker)
    parent.kill()
    parent.wait()
    psutil.wait_procs([process], timeout=20)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    call("add", a=1, b=1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_runs_outside_the_main_thread() -> None:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(call("add", a=20, b=1)))
    thread.start()
    thread.join(timeout=60)
    assert results == [21]


# A worker that stands.


def test_a_standing_worker_holds_what_it_made(capfd: pytest.CaptureFixture[str]) -> None:
    with StandingWorker(supervisor_fixture.hold, [1]) as worker:
        assert worker.ask(supervisor_fixture.append, 2) == (worker.pid, [1, 2])
        assert worker.ask(supervisor_fixture.append, item=3) == (worker.pid, [1, 2, 3])
        with pytest.raises(ValueError, match=re.escape("it holds [1, 2, 3]")) as caught:
            worker.ask(supervisor_fixture.fail)
        assert "in fail" in caught.value.__notes__[0]
        assert worker.ask(supervisor_fixture.print_and_count) == 3
    assert not psutil.pid_exists(worker.pid)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "on stdout, as libraries do\n")


def test_a_standing_worker_that_cannot_begin_is_gone() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        StandingWorker(supervisor_fixture.hold)  # type: ignore[call-arg]
    assert not psutil.Process().children()


@linux
def test_a_standing_worker_that_is_killed_is_explained() -> None:
    with (
        StandingWorker(supervisor_fixture.hold, [1]) as worker,
        pytest.raises(LlmcompressError, match=r"the worker was killed \(SIGKILL\), possibly for its memory"),
    ):
        worker.ask(supervisor_fixture.kill_itself)


@posix
def test_a_standing_worker_cleans_up_when_its_asker_fails(tmp_path: Path) -> None:
    def fail_once_it_waits(worker: StandingWorker[list[int]]) -> None:
        thread = threading.Thread(target=lambda: _ignore_errors(worker, tmp_path))
        thread.start()
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError), StandingWorker(supervisor_fixture.hold, [1]) as worker:
        fail_once_it_waits(worker)
    assert not psutil.pid_exists(worker.pid)
    assert not (tmp_path / "staging").exists()


def _ignore_errors(worker: StandingWorker[list[int]], directory: Path) -> None:
    with contextlib.suppress(Exception):
        worker.ask(supervisor_fixture.hold_a_file, directory)


@posix
def test_a_standing_worker_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, supervisor_fixture\nfrom pathlib import Path\n"
        "from llmcompress.system.standing import StandingWorker\n"
        "StandingWorker(supervisor_fixture.hold, [1]).ask(supervisor_fixture.hold_a_file, Path(sys.argv[1]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=_importable())
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([process], timeout=20)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
