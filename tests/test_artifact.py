from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from artifact_fixture import CHILD, ENV, contents, manifest_for, seed_of, write_artifact

from llmcompress.artifact import (
    MANIFEST,
    file_records,
    manifest_sha256,
    output,
    read_manifest,
    remove_artifact,
    remove_leftovers,
    replace_report,
    require_verified,
    staging,
    verify,
    write_errors,
)
from llmcompress.artifact.manifest import sealed
from llmcompress.errors import ArtifactError, LockedError, ModelError, UsageError, WriteError
from llmcompress.system import files as exchange

DEAD_PID = 2**22 + 1  # above the largest process number Linux gives


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def artifact(out: Path) -> Path:
    return write_artifact(out, 1)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def problems(directory: Path) -> dict[str, str]:
    report = verify(directory)
    assert report.ok == (not report.problems)
    return dict(report.problems)


# --- putting in place


def test_publish_puts_everything_in_place_and_leaves_nothing_beside_it(out: Path) -> None:
    assert write_artifact(out, 1) == out
    assert seed_of(out, (1,)) == 1
    assert names(out.parent) == ["out"]
    assert verify(out).model_dump() == {"ok": True, "directory": "out", "num_files": 3, "problems": ()}


def test_nothing_is_at_the_target_before_publish(out: Path) -> None:
    with staging(out) as staged:
        (staged.path / "model.bin").write_bytes(b"x")
        assert staged.target == out
        assert not out.exists()
        staged.publish(manifest_for(staged.path))
        assert names(out) == [MANIFEST, "model.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(out: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staging(out) as staged:
            (staged.path / "model.bin").write_bytes(b"x")
            raise error

    with pytest.raises(error):
        fail()
    assert names(out.parent) == []


def test_leaving_without_publish_leaves_nothing_and_keeps_the_old(artifact: Path) -> None:
    with staging(artifact, overwrite=True) as staged:
        (staged.path / "model.bin").write_bytes(b"x")
    assert seed_of(artifact, (1,)) == 1
    assert names(artifact.parent) == ["out"]


def test_missing_parents_are_made_and_removed_again_if_nothing_came(tmp_path: Path) -> None:
    with staging(tmp_path / "a" / "b" / "out"):
        pass
    assert names(tmp_path) == []
    write_artifact(tmp_path / "a" / "b" / "out", 1)
    assert seed_of(tmp_path / "a" / "b" / "out", (1,)) == 1


@pytest.mark.parametrize(
    "name", ["with space", "ünïcode-模型", "dots.in.name", "[glob]*", "-dash", "x" * 255, "模" * 85]
)
def test_any_name_works(tmp_path: Path, name: str) -> None:
    write_artifact(tmp_path / name, 1)
    write_artifact(tmp_path / name, 2, overwrite=True)
    assert seed_of(tmp_path / name, (1, 2)) == 2
    assert names(tmp_path) == [name]


def test_two_long_names_that_end_differently_are_two_outputs(tmp_path: Path) -> None:
    first, second = ("x" * 254 + end for end in "ab")
    with staging(tmp_path / first) as one:
        write_artifact(tmp_path / second, 2)
        replace_report(tmp_path / second, "README.md", b"# A card\n")
        with pytest.raises(LockedError, match="another run"), staging(tmp_path / first):
            pass
        (left,) = [path for path in tmp_path.iterdir() if ".staging-" in path.name]
        assert all(len(os.fsencode(name)) <= 255 for name in names(tmp_path))
        one.publish(manifest_for(one.path))
    assert names(tmp_path) == [first, second]
    # What a run leaves that is killed at its first step.
    left.mkdir()
    remove_leftovers(tmp_path / second)
    assert left.exists()
    remove_leftovers(tmp_path / first)
    assert names(tmp_path) == [first, second]


def test_a_name_that_no_file_system_takes_is_refused_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"cannot write: File name too long \(ENAMETOOLONG\); ") as caught,
        staging(tmp_path / ("x" * 256)),
    ):
        pytest.fail("the work began")
    assert caught.value.hint == "choose a shorter output name"
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EILSEQ, errno.ENOTCONN])
@pytest.mark.parametrize("call", ["exists", "iterdir", "mkdir", "is_dir", "rename"])
def test_whatever_the_file_system_refuses_is_a_write_error(
    out: Path, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir()

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    def write() -> None:
        with staging(out, overwrite=True) as staged:
            staged.publish(manifest_for(staged.path))

    monkeypatch.setattr(Path, call, refuse)
    monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    with pytest.raises(WriteError, match=rf"cannot write: .* \({errno.errorcode[number]}\); ") as caught:
        write()
    assert caught.value.exit_code == 8
    assert caught.value.hint


def test_a_relative_path_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staging("sub/../out") as staged:
        (staged.path / "model.bin").write_bytes(b"x")
        monkeypatch.chdir("/")
        assert staged.publish(manifest_for(staged.path)) == tmp_path / "out"


def test_publish_refuses_a_manifest_of_other_files(out: Path) -> None:
    def publish() -> None:
        with staging(out) as staged:
            (staged.path / "model.bin").write_bytes(b"x")
            manifest = manifest_for(staged.path)
            (staged.path / "late.json").write_bytes(b"{}")
            staged.publish(manifest)

    with pytest.raises(ArtifactError, match=r"does not list what was written; they differ in late\.json"):
        publish()
    assert names(out.parent) == []


def test_the_same_files_and_record_give_the_same_manifest_bytes(tmp_path: Path) -> None:
    first, second = write_artifact(tmp_path / "a", 1), write_artifact(tmp_path / "deep" / "b", 1)
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    assert (first / MANIFEST).read_bytes().endswith(b"}\n")


def test_a_change_of_the_manifest_itself_is_found(artifact: Path) -> None:
    path = artifact / MANIFEST
    content = path.read_bytes()
    places = [*range(0, len(content) - 200, 97), *range(len(content) - 200, len(content))]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not verify(artifact).ok, content[max(0, place - 20) : place + 20]
    path.write_bytes(content)
    assert verify(artifact).ok


def test_the_manifest_of_an_earlier_version_has_no_hash_of_itself(artifact: Path) -> None:
    path = artifact / MANIFEST
    content = path.read_text()
    start, seal = content[: content.rindex(",")], content[content.rindex(",") :]
    assert re.fullmatch(r',\n    "sha256": "[0-9a-f]{64}"\n  }\n}\n', seal)
    assert json.loads(content)["measured"]["sha256"] == hashlib.sha256(f"{start}\n  }}\n}}\n".encode()).hexdigest()
    path.write_text(f"{start}\n  }}\n}}\n")
    assert verify(artifact).ok
    path.write_text(content.replace('"created": "2026', '"created": "2025'))
    (problem,) = verify(artifact).problems
    assert problem == ("llmcompress.json", "has other content than when it was written (its own sha256 differs)")


# --- an existing target


def test_an_existing_artifact_is_kept_without_overwrite(artifact: Path) -> None:
    with pytest.raises(UsageError, match="exists already") as caught:
        write_artifact(artifact, 2)
    assert "`overwrite`" in caught.value.hint
    assert seed_of(artifact, (1, 2)) == 1
    assert names(artifact.parent) == ["out"]


def test_overwrite_replaces_an_artifact_with_its_reports(artifact: Path) -> None:
    (artifact / "eval.json").write_text("{}")
    write_artifact(artifact, 2, overwrite=True)
    assert seed_of(artifact, (1, 2)) == 2
    assert names(artifact.parent) == ["out"]


def test_overwrite_replaces_an_empty_directory_and_what_is_not_there(out: Path) -> None:
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_artifact(out, 1)
    write_artifact(out, 1, overwrite=True)
    assert seed_of(out, (1,)) == 1
    assert seed_of(write_artifact(out.with_name("new"), 1, overwrite=True), (1,)) == 1


def test_overwrite_keeps_a_directory_that_is_no_artifact(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"is no llmcompress artifact \(it has no llmcompress\.json\): it is left"):
        write_artifact(out, 1, overwrite=True)
    assert (out / "thesis.tex").read_text() == "mine"
    assert names(out.parent) == ["out"]


def test_overwrite_keeps_a_file(out: Path) -> None:
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a directory"):
        write_artifact(out, 1, overwrite=True)
    assert out.read_text() == "mine"


def test_a_target_that_appears_meanwhile_is_kept(out: Path) -> None:
    def publish() -> None:
        with staging(out, overwrite=True) as staged:
            out.mkdir()
            (out / "theirs").write_text("x")
            staged.publish(manifest_for(staged.path))

    with pytest.raises(UsageError, match="is no llmcompress artifact"):
        publish()
    assert names(out) == ["theirs"]
    assert names(out.parent) == ["out"]


def test_a_link_to_an_artifact_stays_a_link(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    link = tmp_path / "other" / "latest"
    link.symlink_to(artifact)
    assert write_artifact(link, 2, overwrite=True) == artifact
    assert link.is_symlink()
    assert seed_of(link, (1, 2)) == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/", "is a mount point"),
        ("a\0b", "cannot be an output directory"),
        (os.fsdecode(b"a\xff"), "is no text in UTF-8, and OpenVINO takes no other path"),
    ],
)
def test_a_path_that_cannot_be_an_output(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message), staging(path):
        pass


@pytest.mark.parametrize(
    ("path", "cause"), [("x" * 300, "File name too long (ENAMETOOLONG)"), ("file/out", "File exists (EEXIST)")]
)
def test_a_path_that_the_file_system_refuses(tmp_path: Path, path: str, cause: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError) as caught, staging(tmp_path / path):
        pass
    assert cause in caught.value.message
    assert names(tmp_path) == ["file"]


# --- output and input


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    return source


def refuse(target: Path, source: Path, message: str) -> None:
    parent = target.resolve().parent
    before = sorted(parent.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=message) as caught:
            write_artifact(target, 9, overwrite=overwrite, inputs=(source,))
        assert "the input is never written to" in caught.value.message
    assert sorted(parent.rglob("*")) == before
    assert (source / "model.safetensors").read_bytes() == b"weights"


def test_output_that_is_the_input(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(source, source, "is the input itself")
    refuse(source / "sub" / "..", source, "is the input itself")
    monkeypatch.chdir(source)
    refuse(Path(), source, "is the input itself")


def test_output_that_is_a_link_to_the_input_or_the_other_way(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    refuse(tmp_path / "link", source, "is the input itself")
    refuse(source, tmp_path / "link", "is the input itself")
    refuse(tmp_path / "link" / "out", source, "lies inside the input")


def test_output_inside_the_input(source: Path) -> None:
    refuse(source / "out", source, "lies inside the input")
    refuse(source / "sub" / "new" / "out", source, "lies inside the input")
    (source / "linked").symlink_to(source.parent / "elsewhere")
    (source.parent / "elsewhere").mkdir()
    refuse(source.parent / "elsewhere" / "out", source, "lies inside the input")


def test_output_that_contains_the_input(artifact: Path, source: Path) -> None:
    refuse(source.parent, source, "contains the input")
    shutil.move(source, artifact / "source")
    refuse(artifact, artifact / "source", "contains the input")


def test_an_artifact_whose_files_are_the_inputs_by_a_hard_link(artifact: Path, source: Path) -> None:
    os.link(source / "model.safetensors", artifact / "tokenizer" / "model.safetensors")
    refuse(artifact, source, r"shares files with the input by links, such as .*model\.safetensors")


def test_an_artifact_that_the_input_links_to(artifact: Path, source: Path) -> None:
    (source / "tokenizer.json").symlink_to(artifact / "openvino_model.xml")
    refuse(artifact, source, r"shares files with the input by links, such as .*tokenizer\.json")


def test_an_artifact_may_be_made_from_another_one_and_from_a_file(artifact: Path, source: Path, tmp_path: Path) -> None:
    text = tmp_path / "calibration.txt"
    text.write_text("text")
    write_artifact(tmp_path / "two", 2, inputs=(artifact, source, text, tmp_path / "absent"))
    assert seed_of(tmp_path / "two", (2,)) == 2
    with pytest.raises(UsageError, match="is the input itself"):
        write_artifact(text, 2, inputs=(text,))


# --- the lock and what killed runs leave


def test_a_second_run_in_the_same_process_is_refused(out: Path) -> None:
    with staging(out), pytest.raises(LockedError, match="another run is writing this output"), staging(out):
        pass
    assert names(out.parent) == []


def leave_staging(out: Path, owner: str | None, name: str = "0123abcd", files: tuple[str, ...] = ("model/x",)) -> Path:
    directory = out.with_name(f".{out.name}.staging-{name}")
    directory.mkdir()
    for file in files:
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text("x")
    if owner is not None:
        (directory / "owner.json").write_text(owner)
    return directory


def owner(pid: int, started: float, host: str | None = None) -> str:
    return json.dumps({"pid": pid, "started": started, "host": host or socket.gethostname()})


@pytest.mark.parametrize(
    "mark",
    [
        owner(DEAD_PID, 0),
        owner(os.getppid(), psutil.Process(os.getppid()).create_time() - 1000),  # the number was given again
        owner(os.getppid(), psutil.Process(os.getppid()).create_time(), host="elsewhere"),
        "",  # killed before the mark had its content
        "{",
    ],
)
def test_what_a_dead_run_left_is_removed(out: Path, mark: str) -> None:
    leave_staging(out, mark, files=("model/deep", "llmcompress.json"))
    out.with_name(".out.lock").write_text("")
    write_artifact(out, 1)
    assert names(out.parent) == ["out"]


def test_an_empty_staging_directory_is_removed(out: Path) -> None:
    leave_staging(out, None, files=())
    write_artifact(out, 1)
    assert names(out.parent) == ["out"]


def test_other_directories_are_left_alone(out: Path, tmp_path: Path) -> None:
    kept = [
        leave_staging(out, None),
        leave_staging(out, owner(DEAD_PID, 0), name="backup"),
        leave_staging(out.with_name("out2"), owner(DEAD_PID, 0)),
        leave_staging(out.with_name("out.staging-0123abcd"), owner(DEAD_PID, 0)),
    ]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "owner.json").write_text("")
    out.with_name(".out.staging-aaaaaaaa").symlink_to(tmp_path / "theirs")
    before = sorted(tmp_path.rglob("*"))
    write_artifact(out, 1)
    shutil.rmtree(out)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.exists() for path in kept)


def test_a_zombie_is_dead(out: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    mark = owner(process.pid, psutil.Process(process.pid).create_time())
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    leave_staging(out, mark)
    write_artifact(out, 1)
    process.wait()
    assert names(out.parent) == ["out"]


def test_a_live_run_is_respected_even_where_the_lock_does_not_hold(out: Path) -> None:
    parent = psutil.Process(os.getppid())
    leave_staging(out, owner(parent.pid, parent.create_time()))
    with pytest.raises(LockedError, match=rf"another run \(process {parent.pid} on \S+\) is writing this output"):
        write_artifact(out, 1)
    assert names(out.parent) == [".out.staging-0123abcd"]


def test_a_run_that_came_at_the_same_time_is_seen_after_the_own_mark(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = psutil.Process(os.getppid())
    monkeypatch.setattr(output, "_remove_stale", lambda target: None)
    leave_staging(out, owner(parent.pid, parent.create_time()))
    with pytest.raises(LockedError, match="is writing this output"):
        write_artifact(out, 1)
    assert names(out.parent) == [".out.staging-0123abcd"]


def test_a_staging_directory_that_cannot_be_removed_is_named(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(output.shutil, "rmtree", refuse)
    with staging(out):
        pass
    assert (
        "could not be removed ([Errno 16] Device or resource busy); the next run to this output tries again"
        in caplog.text
    )
    monkeypatch.undo()
    write_artifact(out, 1)
    assert names(out.parent) == ["out"]


# --- where there is no exchange


def test_two_renames_replace_where_there_is_no_exchange(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_exchange", lambda first, second: False)
    write_artifact(artifact, 2, overwrite=True)
    assert seed_of(artifact, (1, 2)) == 2
    assert names(artifact.parent) == ["out"]


def test_the_old_output_comes_back_when_the_second_rename_fails(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "model":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(exchange, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(WriteError, match="EIO"):
        write_artifact(artifact, 2, overwrite=True)
    assert seed_of(artifact, (1, 2)) == 1
    assert names(artifact.parent) == ["out"]


def test_the_next_run_puts_an_output_back_that_a_killed_one_had_moved_aside(artifact: Path) -> None:
    directory = leave_staging(artifact, owner(DEAD_PID, 0))
    artifact.rename(directory / "replaced")
    with pytest.raises(UsageError, match="exists already"), staging(artifact):
        pytest.fail("refused before the work, not after it")
    assert seed_of(artifact, (1, 2)) == 1
    assert names(artifact.parent) == ["out"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_directories(out: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write_artifact(out, 1)
    assert seed_of(out, (1,)) == 1


# --- reading


def test_file_records_are_sorted_and_leave_out_reports(tmp_path: Path) -> None:
    for name in ("b/z.bin", "b.txt", "a", "eval.json", "README.md", MANIFEST, ".gitattributes", "b/eval.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    records = file_records(tmp_path)
    assert [record.path for record in records] == ["a", "b.txt", "b/eval.json", "b/z.bin"]
    assert records[3].size_bytes == 7
    assert records[3].sha256 == hashlib.sha256(b"b/z.bin").hexdigest()
    assert [
        record.path for record in file_records(tmp_path, exclude={"a", "b.txt", "b/z.bin", "b/eval.json"})
    ] == sorted(["eval.json", "README.md", MANIFEST, ".gitattributes"])


@pytest.mark.parametrize("kind", ["fifo", "dangling", "directory"])
def test_file_records_refuse_what_is_no_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sub").mkdir()
    if kind == "fifo":
        os.mkfifo(tmp_path / "odd")
    else:
        (tmp_path / "odd").symlink_to("sub" if kind == "directory" else "absent")
    with pytest.raises(ArtifactError, match="odd: is no regular file"):
        file_records(tmp_path)


def test_manifest_sha256_is_of_the_file(artifact: Path) -> None:
    assert manifest_sha256(artifact) == hashlib.sha256((artifact / MANIFEST).read_bytes()).hexdigest()


@pytest.mark.parametrize("read", [read_manifest, manifest_sha256, verify, require_verified])
def test_a_directory_without_manifest(tmp_path: Path, read: object) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=r"is no llmcompress artifact: it has no llmcompress\.json"):
            read(directory)  # type: ignore[operator]


def edit_manifest(directory: Path, **fields: object) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_fields_of_a_newer_version_are_tolerated(artifact: Path) -> None:
    edit_manifest(artifact, sparsity=0.5)
    assert read_manifest(artifact).num_parameters == 1000
    assert verify(artifact).ok


def test_a_newer_manifest_version_says_what_is_needed(artifact: Path) -> None:
    edit_manifest(artifact, schema_version=7, llmcompress_version="3.2.1", recipe="another shape")
    with pytest.raises(
        ArtifactError, match=r"by llmcompress 3\.2\.1 with manifest version 7; this one reads up to"
    ) as caught:
        read_manifest(artifact)
    assert caught.value.hint == "install llmcompress 3.2.1 or newer"
    assert "install llmcompress 3.2.1" in problems(artifact)[MANIFEST]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid JSON"),
        (b'{"schema_version": 1', "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b"{}", "schema_version: Field required"),
        (b'{"schema_version": 1}', "llmcompress_version: Field required"),
        (b'{"schema_version": "one"}', "schema_version: Input should be a valid integer"),
    ],
)
def test_a_damaged_manifest(artifact: Path, content: bytes, message: str) -> None:
    (artifact / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read: " + message):
        read_manifest(artifact)
    assert message in problems(artifact)[MANIFEST]
    assert verify(artifact).num_files == 0
    with pytest.raises(ArtifactError, match=r"is not what its manifest says: llmcompress\.json: cannot be read"):
        require_verified(artifact)


def test_a_manifest_that_is_a_directory(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    (artifact / MANIFEST).mkdir()
    assert "cannot be read: Is a directory" in problems(artifact)[MANIFEST]
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        read_manifest(artifact)


# --- verify


def test_verify_finds_every_flipped_bit(artifact: Path) -> None:
    path = artifact / "openvino_model.bin"
    good = path.read_bytes()
    for position in random.Random(0).sample(range(len(good)), 100):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert problems(artifact) == {
            "openvino_model.bin": "has other content than the manifest says (sha256 differs)"
        }, position
    path.write_bytes(good)
    assert verify(artifact).ok


def test_verify_names_every_deviation(artifact: Path) -> None:
    bin_, xml = artifact / "openvino_model.bin", artifact / "openvino_model.xml"
    bin_.write_bytes(bin_.read_bytes() + b"junk")
    xml.unlink()
    (artifact / "tokenizer" / "extra.json").write_text("{}")
    assert problems(artifact) == {
        "openvino_model.bin": "has 2004 bytes, the manifest says 2000",
        "openvino_model.xml": "is missing",
        "tokenizer/extra.json": "is not in the manifest",
    }
    with pytest.raises(
        ArtifactError, match=r"openvino_model\.bin: has 2004 bytes.*; openvino_model\.xml: is missing; tok"
    ):
        require_verified(artifact)


def test_require_verified_shortens_a_long_list(artifact: Path) -> None:
    for number in range(8):
        (artifact / f"extra{number}").write_text("")
    with pytest.raises(ArtifactError, match=r"extra4: is not in the manifest; and 3 more\n"):
        require_verified(artifact)


def test_require_verified_returns_the_manifest(artifact: Path) -> None:
    assert require_verified(artifact) == read_manifest(artifact) == sealed(manifest_for(artifact))


def test_verify_names_links_and_odd_files_without_opening_them(artifact: Path, tmp_path: Path) -> None:
    vocabulary = artifact / "tokenizer" / "vocab.json"
    vocabulary.rename(tmp_path / "vocab.json")
    vocabulary.symlink_to(tmp_path / "vocab.json")
    (artifact / "elsewhere").symlink_to(tmp_path)
    (artifact / "openvino_model.xml").unlink()
    os.mkfifo(artifact / "openvino_model.xml")
    assert problems(artifact) == {
        "tokenizer/vocab.json": "is a link",
        "elsewhere": "is a link",
        "openvino_model.xml": "is no regular file",
    }


def test_verify_never_leaves_the_directory(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    entry = {"size_bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    listed = json.loads((artifact / MANIFEST).read_text())["files"]
    edit_manifest(
        artifact, files=[*listed, {"path": "../secret", **entry}, {"path": str(tmp_path / "secret"), **entry}]
    )
    assert problems(artifact) == {"../secret": "is missing", str(tmp_path / "secret"): "is missing"}


def test_verify_names_a_file_that_is_listed_twice(artifact: Path) -> None:
    listed = json.loads((artifact / MANIFEST).read_text())["files"]
    edit_manifest(artifact, files=[*listed, listed[0]])
    assert problems(artifact) == {MANIFEST: "lists a file twice"}


@pytest.mark.parametrize("place", ["folder", "file"])
def test_verify_names_what_it_cannot_read(artifact: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    denied = artifact / ("tokenizer" if place == "folder" else "openvino_model.xml")
    scandir, open_ = os.scandir, Path.open

    def refuse(path: Path) -> None:
        if Path(path) == denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(Path, "open", lambda self, *a, **b: refuse(self) or open_(self, *a, **b))
    (text,) = [text for name, text in problems(artifact).items() if name.endswith(denied.name)]
    assert text == "cannot be read: Permission denied"


def test_reports_and_what_the_hub_adds_are_no_deviation(artifact: Path) -> None:
    for name in (
        "README.md",
        "eval.json",
        "bench.json",
        "tune.json",
        ".gitattributes",
        ".cache/huggingface/a.metadata",
    ):
        (artifact / name).parent.mkdir(parents=True, exist_ok=True)
        (artifact / name).write_text("x")
    assert verify(artifact).ok
    (artifact / ".cache" / "other").write_text("x")
    assert problems(artifact) == {".cache/other": "is not in the manifest"}


def test_an_artifact_in_the_hub_cache_is_verified_through_its_links(artifact: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    for path in [path for path in artifact.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(artifact)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert verify(snapshot).ok
    blob.write_bytes(b"\0" * blob.stat().st_size)
    assert list(problems(snapshot).values()) != []
    (snapshot / "openvino_model.xml").unlink()
    (snapshot / "openvino_model.xml").symlink_to(artifact / "openvino_model.xml")
    assert problems(snapshot)["openvino_model.xml"] == "is a link"


# --- write errors


def test_an_artifact_is_removed_as_a_whole(artifact: Path) -> None:
    remove_artifact(artifact)
    assert not artifact.exists()
    assert names(artifact.parent) == []
    remove_artifact(artifact)


def test_what_is_no_artifact_is_not_removed(artifact: Path) -> None:
    other = artifact.with_name("other")
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no llmcompress artifact"):
        remove_artifact(other)
    assert names(other) == ["notes.txt"]
    with staging(artifact, overwrite=True), pytest.raises(LockedError, match="is writing this output"):
        remove_artifact(artifact)
    assert verify(artifact).ok


def test_leftovers_are_removed_unless_a_run_is_at_work(out: Path) -> None:
    with staging(out) as staged:
        remove_leftovers(out)
        assert staged.path.is_dir()
    owner = {"pid": 2**22 - 1, "started": 0.0, "host": platform.node()}
    stale = out.with_name(f".{out.name}.staging-0123abcd")
    (stale / "model").mkdir(parents=True)
    (stale / "owner.json").write_text(json.dumps(owner))
    foreign = out.with_name(f".{out.name}.staging-mine")
    foreign.mkdir()
    remove_leftovers(out)
    assert list(out.parent.iterdir()) == [foreign]
    remove_leftovers(out.parent / "nowhere" / "out")


def test_a_full_device_is_named_with_cause_and_room(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError) as caught,
        write_errors(tmp_path / "model.bin"),
        Path("/dev/full").open("wb") as file,
    ):
        file.write(b"x")
    assert caught.value.where == str(tmp_path / "model.bin")
    free = shutil.disk_usage(tmp_path).free
    said = int(caught.value.message.split("; ")[1].split(" bytes free")[0].replace(",", ""))
    assert caught.value.message.startswith("cannot write: No space left on device (ENOSPC); ")
    assert abs(said - free) < 2**30
    assert "another one" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "x"), "(EDQUOT)"),
        (PermissionError(errno.EACCES, "x", "/some/file"), "/some/file: cannot write: Permission denied (EACCES)"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "(ENOSPC)"),
        (RuntimeError("basic_ios::clear: iostream error"), "most often for a full disk or a file-size limit"),
        (Exception("Read-only file system (os error 30)"), "mounted read-only"),
    ],
)
def test_what_libraries_raise_when_a_write_fails(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(WriteError) as caught, write_errors(tmp_path):
        raise error
    assert message in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        OSError("Can't load tokenizer for 'x'"),
        ValueError("iostream error"),
        KeyboardInterrupt(),
        UsageError("about (os error 28) and [Errno 28]"),
    ],
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, write_errors(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("chained", [True, False], ids=["from the cause", "from None"])
def test_our_error_for_a_full_disk_is_a_write_error(tmp_path: Path, chained: bool) -> None:
    def convert() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ModelError("cannot be converted") from (error if chained else None)

    with pytest.raises(WriteError, match=r"No space left on device \(ENOSPC\)") as caught, write_errors(tmp_path):
        convert()
    assert caught.value.where == str(tmp_path)
    assert isinstance(caught.value.__cause__, ModelError)


def test_our_error_for_a_failed_read_stays_as_it_is(tmp_path: Path) -> None:
    def read() -> None:
        try:
            (tmp_path / "absent").read_bytes()
        except OSError as error:
            raise ModelError("cannot be read") from error

    with pytest.raises(ModelError, match="cannot be read"), write_errors(tmp_path):
        read()


def test_a_write_that_stopped_under_a_size_limit_names_the_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, before[1]))
    try:
        with pytest.raises(WriteError) as caught, write_errors(tmp_path):
            raise RuntimeError("basic_ios::clear: iostream error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in caught.value.hint


def test_the_tokenizers_library_on_a_full_device() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    with pytest.raises(WriteError, match=r"No space left on device \(ENOSPC\)"), write_errors(Path("/dev/full")):
        tokenizers.Tokenizer(tokenizers.models.BPE()).save("/dev/full")


def test_no_heavy_library_is_imported() -> None:
    code = "import sys, llmcompress.artifact; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENV
    ).stdout.split()
    assert "filelock" in loaded
    assert not {"torch", "numpy", "transformers", "openvino", "nncf", "datasets", "huggingface_hub"} & set(loaded)


def test_the_fixture_notices_a_mixture(artifact: Path) -> None:
    (artifact / "openvino_model.xml").write_bytes(contents(2)["openvino_model.xml"])
    with pytest.raises(AssertionError):
        seed_of(artifact, (1, 2))


def test_the_child_of_the_fault_tests_works(out: Path) -> None:
    done = subprocess.run([*CHILD, out, "3"], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stdout) == (0, "staged\npublished\n"), done.stderr
    assert seed_of(out, (3,)) == 3


def test_a_report_is_put_in_place_or_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.artifact import verify, write_report
    from llmcompress.report.record import FileRecord

    out = write_artifact(tmp_path / "out", 3)

    def text() -> str:
        return (out / "eval.json").read_text(encoding="utf-8")

    write_report(out, "eval.json", FileRecord(path="first", size_bytes=1, sha256="a"))
    assert '"first"' in text()
    write_report(out, "eval.json", FileRecord(path="second", size_bytes=1, sha256="a"))
    assert '"second"' in text()
    assert verify(out).ok
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(WriteError, match="ENOSPC"):
        write_report(out, "eval.json", FileRecord(path="third", size_bytes=1, sha256="a"))
    assert '"second"' in text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_during_the_removal_of_what_was_staged_is_heard_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[Path] = []
    rmtree = shutil.rmtree

    def interrupted(path: Path) -> None:
        times.append(path)
        if len(times) < 3:
            raise KeyboardInterrupt
        rmtree(path)

    monkeypatch.setattr("llmcompress.artifact.output.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out") as stage:
        (stage.path / "file").write_text("x")
    assert len(times) == 3
    assert list(tmp_path.iterdir()) == []
