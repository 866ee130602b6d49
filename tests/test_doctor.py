import os
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import llmcompress.cli.doctor
from llmcompress.cli import libraries as checks
from llmcompress.cli.doctor import Diagnosis, cpu_features, diagnose
from llmcompress.system.progress import Progress

WORKING_OPENVINO = """
class Core:
    available_devices = ["CPU", "NPU"]
    def get_property(self, device, name):
        if device == "NPU":
            raise RuntimeError("no driver\\nat some line")
        return {"FULL_DEVICE_NAME": "A fast processor", "OPTIMIZATION_CAPABILITIES": ["INT8", "FP32"]}[name]
"""


@pytest.fixture
def fake_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the import path, with a quick stand-in for each library that doctor imports."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torch", "torchvision", "openvino"):
        (tmp_path / f"{name}.py").write_text(WORKING_OPENVINO if name == "openvino" else "")
    monkeypatch.setattr(llmcompress.cli.doctor, "IMPORTS", ("torch", "torchvision", "openvino"))
    monkeypatch.setattr(llmcompress.cli.doctor, "range_findings", lambda: [])
    monkeypatch.setattr(llmcompress.cli.doctor, "release_findings", lambda installed: [])
    return tmp_path


def distribution(directory: Path, name: str, version: str, *requires: str) -> None:
    info = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_a_sound_machine_has_no_findings(fake_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(fake_libraries / "not" / "there" / "yet"))
    stages: list[Progress] = []
    found = diagnose(stages.append)
    assert (found.findings, found.ok) == ((), True)
    assert [device.name for device in found.devices] == ["CPU", "NPU"]
    assert (found.devices[0].full_name, found.devices[0].capabilities) == ("A fast processor", ("FP32", "INT8"))
    assert found.devices[1].full_name == "does not answer: no driver"
    assert stages[0].stage == "importing torch"
    assert found.hf_home == str(fake_libraries / "not" / "there" / "yet")
    assert {disk.use for disk in found.disks} == {"working directory", "Hugging Face cache"}
    assert all(disk.free_bytes > 0 for disk in found.disks)
    assert found.num_cores >= 1
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValidationError, match="frozen"):
        found.platform = "other"  # type: ignore[misc]


def test_torchvision_beside_a_foreign_torch_is_told_in_plain_words(fake_libraries: Path) -> None:
    (fake_libraries / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    found = diagnose()
    assert not found.ok
    (finding,) = found.findings
    assert "was built for another torch than" in finding.message
    assert "download.pytorch.org/whl/cpu" in finding.hint


def test_a_library_that_cannot_be_imported_is_named_with_its_first_line(fake_libraries: Path) -> None:
    (fake_libraries / "torch.py").write_text("raise OSError('libtorch_cpu.so: failed to map segment\\nsecond line')")
    (finding,) = diagnose().findings
    assert finding.message == "`import torch` fails: OSError: libtorch_cpu.so: failed to map segment"
    assert finding.hint == "python -c 'import torch' shows where"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_library_that_crashes_python_does_not_take_us_with_it(fake_libraries: Path) -> None:
    (fake_libraries / "torchvision.py").write_text("import os; os.abort()")
    (finding,) = diagnose().findings
    assert finding.message.startswith("importing torchvision: the worker crashed with SIGABRT")


def test_no_device_at_all_is_a_finding(fake_libraries: Path) -> None:
    (fake_libraries / "openvino.py").write_text("class Core:\n    available_devices = []\n")
    (finding,) = diagnose().findings
    assert finding.message == "OpenVINO finds no device, not even the CPU"


def test_packages_of_other_openvino_releases_are_a_finding() -> None:
    sound = {"openvino": "2026.4.1", "openvino-tokenizers": "2026.4.1.0", "torch": "2.9"}
    assert list(checks.release_findings(sound)) == []
    (finding,) = checks.release_findings(sound | {"openvino-genai": "2026.3.0.0"})
    assert "openvino 2026.4.1, openvino-tokenizers 2026.4.1.0, openvino-genai 2026.3.0.0" in finding.message
    assert finding.hint == (
        "pip install openvino==2026.4.1.* openvino-tokenizers==2026.4.1.* openvino-genai==2026.4.1.*"
    )
    (finding,) = checks.release_findings({"openvino-tokenizers": "2026.4.1.0", "openvino-genai": "2026.3.0.0"})
    assert finding.hint == "pip install openvino"


def test_a_version_outside_of_what_another_library_needs_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "stack-user", "1.0", "stack-library<5.6,>=5.0", "stack-absent>=2", "stack-off; extra == 'x'")
    distribution(tmp_path, "stack-library", "5.7.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checks, "_STACK", ("stack-user", "stack-never-installed"))
    outside, absent = checks.range_findings()
    assert outside.message == "stack-user 1.0 needs stack-library<5.6,>=5.0, found 5.7.0"
    assert outside.hint == 'pip install "stack-library<5.6,>=5.0"'
    assert absent.message == "stack-user 1.0 needs stack-absent>=2, which is not installed"
    assert outside.broken
    assert absent.broken


def test_the_tested_set_is_read_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.resources, "files", lambda package: tmp_path)
    assert checks.tested_versions() == {}
    (tmp_path / "tested_versions.txt").write_text(
        "# tested\nnncf==3.4.0\n\ntorch == 2.9.1  # CPU\nhuggingface_hub==1.21.0\n"
    )
    assert checks.tested_versions() == {"nncf": "3.4.0", "torch": "2.9.1", "huggingface-hub": "1.21.0"}


def test_every_declared_library_has_a_tested_version() -> None:
    """`doctor` names each of them that is missing, and the version that the tests ran with."""
    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {checks.canonical(Requirement(text).name): Requirement(text) for text in project["dependencies"]}
    tested = checks.tested_versions()
    assert set(declared) <= set(tested)
    assert all(need.specifier.contains(tested[name]) for name, need in declared.items())
    assert {"sentencepiece", "protobuf", "tiktoken"} <= set(declared)


def test_instructions_are_those_that_matter_for_inference(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8 amx_tile\n")
    assert cpu_features(cpuinfo) == ("avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")
    cpuinfo.write_text("processor : 0\nFeatures\t: fp asimd asimddp i8mm bf16\n")
    assert cpu_features(cpuinfo) == ("asimd", "asimddp", "i8mm", "bf16")
    assert cpu_features(tmp_path / "absent") == ()


@pytest.mark.slow
def test_this_machine() -> None:
    found = diagnose()
    assert "CPU" in [device.name for device in found.devices]
    assert found.python == ".".join(map(str, sys.version_info[:3]))
