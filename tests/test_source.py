from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import COMMIT, FakeHub, running, sha256, use
from safetensors.numpy import save

from llmcompress.errors import HubError, ModelError, SecurityError, UsageError
from llmcompress.loaders.architecture import check_architecture
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import side_files
from llmcompress.spec import Access

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
WEIGHTS = save({"w": np.arange(32, dtype=np.float32)})
CANARY = b"raise SystemExit('the code of the repository ran')\n"


def write(directory: Path, **files: object) -> Path:
    """Keyword ``config_json=...`` writes ``config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / name.replace("__", "-").replace("_json", ".json").replace("_st", ".safetensors")).write_bytes(data)
    return directory


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tools.jinja": b"{{ tools }}",
        "tokenizer.model": b"sentencepiece",
        "merges.txt": b"a b",
        "model.safetensors": WEIGHTS,
        "README.md": b"# card",
        "modeling_tiny.py": CANARY,
        "pytorch_model.bin": b"pickle",
        "model.onnx": b"onnx",
        "tiny.gguf": b"gguf",
        "flax_model.msgpack": b"flax",
        "original/consolidated.00.pth": b"pickle",
        "training_args.bin": b"pickle",
        "trainer_state.json": b"{}",
        "pytorch_model.bin.index.json": b"{}",
    }
    with running(FakeHub(files=files)) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


def fetched(hub: FakeHub) -> set[str]:
    return {path.split("/resolve/")[1].partition("/")[2] for method, path in hub.asked("/resolve/")}


def test_resolving_a_hub_id_fetches_the_config_alone(fake: FakeHub) -> None:
    source = resolve("acme/tiny", Access(revision="main"))
    assert (source.kind, source.layout, source.id, source.revision) == ("hub", "checkpoint", "acme/tiny", COMMIT)
    assert source.config == CONFIG
    assert fetched(fake) == {"config.json"}


def test_fetching_brings_what_loading_needs_and_nothing_else(fake: FakeHub) -> None:
    source = fetch_weights(resolve("acme/tiny"))
    assert fetched(fake) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "tokenizer.model",
        "merges.txt",
        "README.md",
        "model.safetensors",
    }
    assert "README.md" not in side_files(source)
    assert "additional_chat_templates/tools.jinja" in side_files(source)
    assert (source.path / "model.safetensors").read_bytes() == WEIGHTS
    assert source.expected_sha256 == {"model.safetensors": sha256(WEIGHTS), "tokenizer.model": sha256(b"sentencepiece")}


def test_code_is_fetched_only_when_allowed(fake: FakeHub) -> None:
    fetch_weights(resolve("acme/tiny", Access(trust_remote_code=True)))
    assert "modeling_tiny.py" in fetched(fake)


def test_the_same_offline_asks_nobody(fake: FakeHub) -> None:
    online = fetch_weights(resolve("acme/tiny"))
    fake.requests.clear()
    offline = fetch_weights(resolve("acme/tiny", Access(offline=True)))
    assert fake.requests == []
    assert (offline.path, offline.revision, offline.config) == (online.path, online.revision, online.config)
    assert offline.expected_sha256 == online.expected_sha256


def test_offline_with_a_shard_missing_names_it(fake: FakeHub) -> None:
    shards(fake)
    source = fetch_weights(resolve("acme/tiny"))
    (source.path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(HubError, match=r"model-00002-of-00002\.safetensors is not there .* in the local cache"):
        fetch_weights(resolve("acme/tiny", Access(offline=True)))


def shards(fake: FakeHub, **more: str) -> None:
    del fake.files["model.safetensors"]
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", **more}
    for tensor in "ab":
        fake.files[names[tensor]] = save({tensor: np.zeros(4, np.float32)})
    fake.files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    fake.files["consolidated.safetensors"] = WEIGHTS


def test_shards_are_those_of_the_index(fake: FakeHub) -> None:
    shards(fake)
    source = fetch_weights(resolve("acme/tiny"))
    weights = {name for name in fetched(fake) if name.endswith(".safetensors")}
    assert weights == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert weights < set(source.expected_sha256)


def test_an_index_that_leaves_the_directory_fetches_no_weights(fake: FakeHub) -> None:
    shards(fake, c="../../evil.safetensors")
    with pytest.raises(SecurityError, match=r"it names '\.\./\.\./evil"):
        fetch_weights(resolve("acme/tiny"))
    assert not [name for name in fetched(fake) if name.endswith(".safetensors")]


def test_an_index_of_a_shard_that_is_not_listed(fake: FakeHub) -> None:
    shards(fake, c="model-00003-of-00003.safetensors")
    with pytest.raises(HubError, match=r"model-00003-of-00003\.safetensors is not there"):
        fetch_weights(resolve("acme/tiny"))


def test_pickle_only_is_refused_and_never_fetched(fake: FakeHub) -> None:
    del fake.files["model.safetensors"]
    source = resolve("acme/tiny")
    with pytest.raises(SecurityError, match=r"pickle files .*pytorch_model\.bin.*safetensors is needed") as caught:
        fetch_weights(source)
    assert caught.value.where == "acme/tiny"
    assert fetched(fake) == {"config.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"model_type": "no_such_type"},
        {"auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}, "model_type": "tiny"},
        {"text_config": {"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}},
    ],
)
def test_a_refused_architecture_makes_no_request_for_weights(fake: FakeHub, change: dict[str, Any]) -> None:
    fake.files["config.json"] = json.dumps({**CONFIG, **change}).encode()
    source = resolve("acme/tiny")
    with pytest.raises((ModelError, SecurityError)):
        check_architecture(source.config, trust_remote_code=source.trust_remote_code)
    assert fetched(fake) == {"config.json"}


def test_a_tokenizer_that_needs_code_is_refused_before_the_weights(fake: FakeHub) -> None:
    fake.files["tokenizer_config.json"] = (
        b'{"auto_map": {"AutoTokenizer": ["t.T", null]}, "tokenizer_class": "TinyTok"}'
    )
    fake.files["config.json"] = json.dumps({**CONFIG, "model_type": "chatglm"}).encode()
    with pytest.raises(SecurityError, match="auto_map: loading it runs Python code") as caught:
        fetch_weights(resolve("acme/tiny"))
    assert caught.value.where == "tokenizer_config.json"
    assert "model.safetensors" not in fetched(fake)
    assert "model.safetensors" in fetched_after(fake, trust_remote_code=True)


def fetched_after(fake: FakeHub, **options: bool) -> set[str]:
    fetch_weights(resolve("acme/tiny", Access(**options)))
    return fetched(fake)


def test_an_ir_repository(fake: FakeHub) -> None:
    del fake.files["model.safetensors"]
    ir = {name: name.encode() for name in ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml")}
    fake.files |= ir
    source = fetch_weights(resolve("acme/tiny"))
    assert (source.kind, source.layout) == ("hub", "ir")
    assert ir.keys() < fetched(fake)
    assert "pytorch_model.bin" not in fetched(fake)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("adapter_config.json", "is an adapter"), ("model_index.json", "diffusion pipeline")],
)
def test_a_repository_without_a_config(fake: FakeHub, name: str, reason: str) -> None:
    fake.files.clear()
    fake.files[name] = b"{}"
    with pytest.raises(ModelError, match=rf"there is no config\.json: .*{reason}"):
        resolve("acme/tiny")


@pytest.mark.parametrize(
    "name",
    ["./x", "/no/such/dir", "../x", "a/../b", "a\\b", "acme/tiny/", "a/b/c", "~nobody/x", "C:/x", "./" + "x" * 300],
)
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match=r"the path .* does not exist"):
        resolve(name)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"mod\xe8le")
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    for path in (odd, tmp_path / "link"):
        with pytest.raises(UsageError, match="is no text in UTF-8, and the libraries take no other") as caught:
            resolve(path)
        assert caught.value.hint == "rename it or a directory above it, or what it links to"


def test_a_path_object_is_never_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the path 'acme/tiny' does not exist"):
        resolve(Path("acme/tiny"))


@pytest.mark.parametrize("name", ["", " ", "a\0b", "-rf", "a b", "x" * 97, "mоdel", "a%2e"])
def test_neither_path_nor_id(name: str) -> None:
    with pytest.raises(UsageError, match=r"neither (an existing|a) path nor a Hub id"):
        resolve(name)


@pytest.mark.parametrize("revision", ["../../x", "a b", "-x", "a\0"])
def test_a_revision_that_is_none(fake: FakeHub, revision: str) -> None:
    with pytest.raises(UsageError, match="is not a revision"):
        resolve("acme/tiny", Access(revision=revision))
    assert fake.requests == []


def test_a_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "m", config_json=CONFIG, model_st=WEIGHTS)
    source = resolve(path)
    assert (source.kind, source.layout, source.path, source.id) == ("checkpoint", "checkpoint", path, None)
    assert fetch_weights(source) == source


def test_an_existing_directory_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "acme" / "tiny", config_json=CONFIG)
    monkeypatch.chdir(tmp_path)
    assert resolve("acme/tiny").path == tmp_path / "acme" / "tiny"


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    write(tmp_path, config_json=CONFIG)
    with pytest.raises(UsageError, match="`revision=main` has no effect on a directory"):
        resolve(tmp_path, Access(revision="main"))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="a directory is needed, and this is none"):
        resolve(tmp_path / "m.bin")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="the link leads nowhere"):
        resolve(tmp_path / "gone")


def test_an_ir_directory(tmp_path: Path) -> None:
    write(tmp_path, config_json=CONFIG)
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(ModelError, match=r"openvino_model\.xml is there without openvino_model\.bin"):
        resolve(tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    source = fetch_weights(resolve(tmp_path))
    assert (source.kind, source.layout) == ("ir", "ir")
    write(tmp_path, model_st=WEIGHTS)
    assert resolve(tmp_path).layout == "checkpoint"


def test_a_directory_with_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json$"):
        resolve_message(tmp_path)
    write(tmp_path, config_json=CONFIG)
    with pytest.raises(ModelError, match=r"there is neither model\.safetensors nor"):
        fetch_weights(resolve(tmp_path))


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("model-00001-of-00003.safetensors",), "the index of these shards is missing: fetch model.safetensors.index"),
        (("adapter_model.safetensors", "adapter_config.json"), "it is an adapter: merge it into its base model"),
        (("consolidated.safetensors",), "it is in its trainer's own layout"),
        (("weights.safetensors",), "transformers reads model.safetensors alone"),
        ((), "give a checkpoint directory as transformers saves it"),
    ],
)
def test_what_is_there_instead_of_weights_has_its_remedy(tmp_path: Path, names: tuple[str, ...], hint: str) -> None:
    write(tmp_path, config_json=CONFIG)
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"there is neither model\.safetensors nor") as caught:
        fetch_weights(resolve(tmp_path))
    assert caught.value.hint.startswith(hint)


def test_a_folder_of_the_hubs_cache_names_the_models_directory(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--acme--tiny--v2"
    snapshot = write(folder / "snapshots" / COMMIT, config_json=CONFIG)
    for given in (folder, snapshot.parent):
        with pytest.raises(ModelError, match="it is a folder of the Hub's cache, which keeps") as caught:
            resolve(given)
        assert caught.value.hint == f"give {snapshot}, or the Hub id acme/tiny--v2"
    with pytest.raises(ModelError, match="it is the Hub's cache, which keeps many models"):
        resolve(tmp_path / "hub")


def test_a_link_of_the_hubs_cache_whose_file_is_gone(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "c" / "snapshots" / COMMIT, config_json=CONFIG)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    with pytest.raises(ModelError, match=r"model\.safetensors is a link that leads nowhere: the model"):
        resolve(snapshot)


def resolve_message(path: Path) -> None:
    try:
        resolve(path)
    except ModelError as error:
        raise ModelError(error.message) from error


def test_an_unreadable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ModelError, match="it cannot be read: Permission denied"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"[1]", "holds a list; an object is needed"),
        (b"null", "holds a NoneType"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_config_that_is_no_json_object(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, config_json=content)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(tmp_path)
    assert caught.value.where == str(tmp_path / "config.json")


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, config_json=b"{}")
    os.truncate(tmp_path / "config.json", 64_000_001)
    with pytest.raises(ModelError, match="more than 64000000 bytes"):
        resolve(tmp_path)


def test_a_pipe_in_place_of_the_config_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_that_leaves_the_directory(tmp_path: Path, name: str) -> None:
    outside = write(tmp_path / "outside", **{"config_json": CONFIG}) / "config.json"
    path = write(tmp_path / "m", config_json=CONFIG, model_st=WEIGHTS)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(outside)
    with pytest.raises(SecurityError, match=rf"{name} is a link to .*outside/config\.json, outside the model's"):
        resolve(path)


def test_links_inside_and_those_of_the_hubs_cache_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "m", real=WEIGHTS, config_json=CONFIG)
    (path / "model.safetensors").symlink_to("real")
    assert resolve(path).kind == "checkpoint"
    blobs, snapshot = write(tmp_path / "c" / "blobs", aa=CONFIG), tmp_path / "c" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(f"../../{blobs.name}/aa")
    assert resolve(snapshot).config == CONFIG


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pth", "x.pkl"])
def test_pickle_files_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = write(tmp_path, config_json=CONFIG)
    (path / name).write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")
    opened = watch_opens(monkeypatch)
    with pytest.raises(SecurityError, match="pickle files"):
        fetch_weights(resolve(path))
    write(path, model_st=WEIGHTS)
    fetch_weights(resolve(path))
    assert [p for p in opened if p.endswith("config.json")]
    assert not [p for p in opened if p.endswith(name)]


def test_code_in_the_directory_is_never_imported(tmp_path: Path) -> None:
    path = write(tmp_path, config_json={**CONFIG, "auto_map": {"AutoConfig": "modeling_tiny.C"}}, model_st=WEIGHTS)
    (path / "modeling_tiny.py").write_bytes(CANARY)
    source = fetch_weights(resolve(path))
    assert check_architecture(source.config).remote_code is False
    assert "modeling_tiny" not in "".join(sys.modules)


def watch_opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that any Python-level open was asked for from here on (an audit hook cannot be taken off again)."""
    opened: list[str] = []
    plain, low = builtins.open, os.open
    io_open = __import__("io").open

    def note(real: Any) -> Any:
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            opened.append(os.fspath(file) if isinstance(file, (str, os.PathLike)) else str(file))
            return real(file, *args, **kwargs)

        return call

    monkeypatch.setattr(builtins, "open", note(plain))
    monkeypatch.setattr("io.open", note(io_open))
    monkeypatch.setattr(os, "open", note(low))
    return opened


def test_a_link_that_leaves_the_directory_is_followed_where_that_is_allowed(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "disk", model_st=WEIGHTS)
    path = write(tmp_path / "m", config_json=CONFIG)
    (path / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    with pytest.raises(SecurityError, match="outside the model's directory; it was not opened") as caught:
        resolve(path)
    assert caught.value.hint == "`allow_links` opens it, if you know that it belongs there"
    assert fetch_weights(resolve(path, Access(allow_links=True))).path == path
    (elsewhere / "model.safetensors").unlink()
    for access in (Access(), Access(allow_links=True)):
        with pytest.raises(ModelError, match=r"model\.safetensors is a link that leads nowhere"):
            resolve(path, access)


def test_a_configuration_that_is_a_dangling_link_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m", model_st=WEIGHTS)
    (path / "config.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(ModelError, match=r"config\.json is a link that leads nowhere"):
        resolve(path)


def test_a_path_into_a_directory_that_is_there_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def listing(repo_id: str, *_: object, **__: object) -> None:
        asked.append(repo_id)
        raise HubError("asked")

    monkeypatch.setattr("llmcompress.hub.listing.listing", listing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out/int4: looks like a path, and the directory 'out' holds no 'int4'"):
        resolve("out/int4")
    assert asked == []
    for source, access in (("other/int4", Access()), ("out/int4", Access("main"))):
        with pytest.raises(HubError, match="asked"):
            resolve(source, access)
    assert asked == ["other/int4", "out/int4"]
