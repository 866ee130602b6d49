import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from llmcompress.system.environment import cpu_name, installed_versions

ROOT = Path(__file__).parent.parent


def python(program: str, home: Path, *prefix: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program with an empty home directory and none of our settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.match(r"HF_|DO_NOT_TRACK|CI$|NNCF_|TORCHINDUCTOR_", name)
    }
    environment = kept | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "LOCALAPPDATA": str(home),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [*prefix, sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=timeout
    )


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_importing_the_package_turns_telemetry_off(tmp_path: Path) -> None:
    program = """
import llmcompress, json, os, sys
from openvino.tools.ovc import telemetry_utils
from huggingface_hub import constants
print(json.dumps([telemetry_utils.tm.__name__, constants.HF_HUB_DISABLE_TELEMETRY,
                  os.environ["DO_NOT_TRACK"], os.environ["DISABLE_SAFETENSORS_CONVERSION"]]))
"""
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["openvino.tools.ovc.telemetry_stub", True, "1", "1"]
    assert files(tmp_path) == []


def test_telemetry_that_was_loaded_before_us_is_declined(tmp_path: Path) -> None:
    program = """
import json, urllib.request, sys
import huggingface_hub.constants as hub
import openvino_telemetry
from openvino_telemetry.backend import backend_ga4
sent = []
backend_ga4.GA4Backend.send = lambda self, message: sent.append(message)
if sys.argv[1:] != ["stock"]:
    import llmcompress
telemetry = openvino_telemetry.Telemetry("test", "1", "x", backend="ga4", enable_opt_in_dialog=False)
telemetry.send_event("category", "action", "label", force_send=True)
telemetry.sender.executor.shutdown(wait=True)
print(json.dumps([telemetry.consent, len(sent), hub.HF_HUB_DISABLE_TELEMETRY]))
"""
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, 0, True]
    assert files(tmp_path) == []
    # The same without us sends and writes, so the checks above can fail.
    stock = python(f"import sys; sys.argv.append('stock')\n{program}", tmp_path)
    assert json.loads(stock.stdout) == [True, 1, False], stock.stderr
    assert "intel" in files(tmp_path)


def test_a_person_who_opted_in_keeps_their_choice(tmp_path: Path) -> None:
    program = (
        "import os; os.environ['HF_HUB_DISABLE_TELEMETRY'] = '0'; os.environ['DO_NOT_TRACK'] = '0'\n"
        "import huggingface_hub.constants as hub\n"
        "import llmcompress; print(os.environ['HF_HUB_DISABLE_TELEMETRY'], hub.HF_HUB_DISABLE_TELEMETRY)"
    )
    assert python(program, tmp_path).stdout == "0 False\n"


COMPRESS = """
import sys
import llmcompress
import numpy as np, openvino as ov, nncf
from optimum.intel import OVModelForCausalLM
from openvino import opset13 as ops
data = ops.parameter([1, -1, 64], np.float32)
weight = ops.constant(np.ones((64, 64), np.float32))
model = ov.Model([ops.matmul(data, weight, False, True)], [data])
compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
assert any(op.get_element_type() == ov.Type.u8 for op in compressed.get_ops())
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_system_call_trace_shows_no_network_and_no_write_outside_tmp(tmp_path: Path) -> None:
    home, scratch, trace = tmp_path / "home", tmp_path / "scratch", tmp_path / "trace"
    home.mkdir()
    scratch.mkdir()
    tracer = (
        "strace",
        "-f",
        "-o",
        str(trace),
        "-e",
        "trace=connect,sendto,sendmsg,open,openat,creat,mkdir,mkdirat,rename",
    )
    tracer = ("env", f"TMPDIR={scratch}", "PYTHONDONTWRITEBYTECODE=1", *tracer)
    done = python(COMPRESS, home, *tracer)
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text(errors="replace").splitlines() if "resumed>" not in line]
    assert any("openat(" in line for line in calls)
    assert [line for line in calls if re.search(r"sin6?_addr|sendto\(|sendmsg\(", line)] == []
    writing = re.compile(
        r'(?:openat|open|creat|mkdir|mkdirat|rename)\((?:AT_FDCWD, )?"([^"]+)".*(?:O_WRONLY|O_RDWR|O_CREAT|0777|creat)'
    )
    written = {found[1] for line in calls if (found := writing.search(line))}
    # Semaphores of Python's multiprocessing and the null device hold nothing after the run.
    outside = {path for path in written if not path.startswith((str(scratch), "/dev/null", "/dev/shm/", "/proc/self/"))}
    assert outside == set()
    assert files(home) == []


def test_the_environment_record_has_versions_machine_and_threads_and_no_identity() -> None:
    from llmcompress.report.record import environment_record

    record = environment_record(3)
    for package in ("openvino", "nncf", "torch", "numpy", "transformers", "optimum-intel", "openvino-tokenizers"):
        assert record.versions[package] == metadata.version(package)
    assert record.versions["python"] == platform.python_version()
    assert record.num_threads == 3
    assert re.fullmatch(r"(linux|darwin|windows)-[a-z0-9_]+", record.platform)
    assert record.cpu
    text = record.model_dump_json()
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert record == environment_record(3)


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert installed_versions(("pydantic", "no-such-package-at-all")) == {"pydantic": metadata.version("pydantic")}


def test_the_processor_name_is_read_or_what_the_platform_says(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.50GHz\nprocessor\t: 1\n")
    assert cpu_name(cpuinfo) == "Some CPU @ 2.50GHz"
    assert cpu_name(tmp_path / "absent") == (platform.processor() or platform.machine())


def test_a_worker_does_without_scikit_learn_until_foreign_code_may_want_it() -> None:
    program = """
import importlib.util, sys
from llmcompress.system.environment import allow_sklearn, leave_out_sklearn
leave_out_sklearn()
import transformers.generation.candidate_generator
print(sys.modules["sklearn"], transformers.utils.is_sklearn_available())
from llmcompress.loaders.remote_code import refuse_hidden_code
refuse_hidden_code({}, False, "here")
print("sklearn" in sys.modules)
refuse_hidden_code({}, True, "here")
import sklearn
print(sklearn.__name__)
allow_sklearn()
print("sklearn" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["None", "False", "True", "sklearn", "True"]


def test_torch_is_left_out_only_by_a_process_that_ends_with_its_call() -> None:
    program = """
import sys
from llmcompress.system.environment import ends_after_this_call, leave_out_torch
leave_out_torch()
print("torch" in sys.modules)
ends_after_this_call()
leave_out_torch()
print(sys.modules["torch"])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "None"]


def test_kernels_begin_without_scipy_only_in_a_process_that_ends_with_its_call() -> None:
    """Elsewhere somebody's own functions may need what Numba does by it."""
    program = """
import sys
import numpy as np
if sys.argv[1] == "ends":
    from llmcompress.system.environment import ends_after_this_call
    ends_after_this_call()
from llmcompress.compression.kernels.integers import pack
packed = np.zeros(1, np.uint8)
pack(np.array([1, 2], np.uint8), 4, packed)
print(packed[0], "scipy.linalg" in sys.modules)
import numba
print(numba.njit(lambda a: a @ a)(np.eye(2))[0, 0] if sys.argv[1] == "goes on" else 1.0)
"""
    for what, is_there in (("ends", "False"), ("goes on", "True")):
        done = subprocess.run([sys.executable, "-c", program, what], check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["33", is_there, "1.0"]
