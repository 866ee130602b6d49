"""What needs no weights is refused before the work: by a prediction as by a run, in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcompress.cli.dry_run import forecast_source
from llmcompress.compression.compress import compress
from llmcompress.compression.compressible import require_compressible
from llmcompress.errors import HubError, LlmcompressError, ModelError, RecipeError, SecurityError
from llmcompress.loaders import hub_headers, other_libraries, tensor_names
from llmcompress.loaders.convertible import require_convertible
from llmcompress.loaders.environments import LayerMissingError
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.safetensors_file import read_header
from llmcompress.loaders.tensors import read_checkpoint
from llmcompress.runner.survey import survey
from llmcompress.spec import Access, Recipe, load_recipe
from llmcompress.spec.plan import load_plan, planned_jobs
from llmcompress.system.progress import silent
from tests.fake_hub import FakeHub, running, use
from tests.quantized_fixture import LAYOUTS, quantized
from tests.tiny_models import ARCHITECTURES, build_checkpoint

ST = "sentence_transformers.models"
EXPORT = "optimum-cli export openvino --task feature-extraction exports an embedding model"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("a") / "untied", "qwen2", num_hidden_layers=1)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("a") / "tied", "qwen3", num_hidden_layers=1, tied=True)


def copied(source: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(source, target)
    fields = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(fields))
    return target


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    save_file(change(load_file(target / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


def refusals(source: Path, recipe: Recipe, tmp_path: Path) -> tuple[LlmcompressError, LlmcompressError]:
    with pytest.raises(LlmcompressError) as dry:
        forecast_source(str(source), recipe, tmp_path / "out", Access(), "llmcompress", silent)
    with pytest.raises(LlmcompressError) as wet:
        compress(source, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return dry.value, wet.value


def _reward(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"} | {
        "score.weight": tensors["lm_head.weight"][:1].clone()
    }


def _bare(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def _headless(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def _pickled(directory: Path) -> None:
    (directory / "model.safetensors").replace(directory / "pytorch_model.bin")


def _with_code(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.T", null]}}')
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "chatglm"}))


def _damaged(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-1])


def _without_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def _with_another_end(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": 900}))
    (directory / "generation_config.json").unlink()
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"<|end|>": 257', '"<|end|>": 900').replace('"id": 257', '"id": 900'))


@pytest.mark.parametrize(
    ("config", "change", "kind", "message"),
    [
        ({"quantization_config": {"quant_method": "quip"}}, None, ModelError, "quantized already with"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, None, ModelError, "a token classifier"),
        ({"model_type": "paligemma", "architectures": [], "vision_config": {}}, None, ModelError, "a vision-language"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, None, ModelError, "only with transformers"),
        ({"model_type": "tiny", "auto_map": {"AutoConfig": "t.T"}}, None, SecurityError, "runs Python code"),
        ({}, _pickled, SecurityError, "the weights are pickle files"),
        ({}, _with_code, SecurityError, "auto_map: loading it runs Python code"),
        ({}, _damaged, ModelError, "is cut short or padded"),
        ({}, _without_tokenizer, ModelError, "no tokenizer: none of"),
        ({}, _with_another_end, ModelError, "the tokenizer does not fit the model, which has 512 embeddings"),
        (
            {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
            None,
            ModelError,
            "missing, which transformers",
        ),
        ({"intermediate_size": 256}, None, ModelError, "could not load the weights: 3 are of another shape"),
    ],
)
def test_a_dry_run_refuses_as_the_run_does(
    config: dict[str, Any],
    change: Callable[[Path], None] | None,
    kind: type[LlmcompressError],
    message: str,
    untied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "off")
    source = copied(untied, tmp_path / "model", **config)
    if change is not None:
        change(source)
    dry, wet = refusals(source, load_recipe("int8"), tmp_path)
    assert type(dry) is kind
    assert message in dry.message
    assert str(dry) == str(wet)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (None, LayerMissingError, "'mamba' only with transformers at least 4.57 and at most 5.3.0; "),
        (_with_code, SecurityError, "auto_map: loading it runs Python code"),
    ],
)
def test_a_dry_run_asks_for_a_layer_where_the_run_does(
    change: Callable[[Path], None] | None,
    kind: type[LlmcompressError],
    message: str,
    untied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLMCOMPRESS_LAYERS", raising=False)
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    source = copied(untied, tmp_path / "model", model_type="mamba", architectures=["MambaForCausalLM"])
    if change is not None:
        change(source)
    dry, wet = refusals(source, load_recipe("int8"), tmp_path)
    assert type(dry) is kind
    assert message in dry.message
    assert str(dry) == str(wet)


def test_a_dry_run_needs_no_tokenizer_where_the_run_needs_none(untied: Path, tmp_path: Path) -> None:
    source = copied(untied, tmp_path / "model")
    _without_tokenizer(source)
    options = (str(source), load_recipe("int8"), tmp_path / "out", Access(), "llmcompress", silent)
    assert forecast_source(*options, tokenizer=False).num_parameters > 0  # type: ignore[arg-type]


def test_a_checkpoint_that_is_quantized_already_is_refused_but_to_a_recipe_that_keeps_it(
    untied: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    quantized(untied, source, LAYOUTS["bitnet"])
    dry, wet = refusals(source, load_recipe("int8"), tmp_path)
    assert "the checkpoint is already quantized and recipe int8 would quantize it again" in dry.message
    assert str(dry) == str(wet)
    require_compressible(resolve(source), load_recipe("none"))


def test_a_graph_that_is_compressed_already_is_refused(untied: Path, tmp_path: Path) -> None:
    compress(untied, "int8", tmp_path / "ir", tokenizer=False)
    dry, wet = refusals(tmp_path / "ir", load_recipe("int8"), tmp_path)
    assert "the model is already compressed" in dry.message
    assert str(dry) == str(wet)
    require_compressible(resolve(tmp_path / "ir"), load_recipe("none"))


def test_what_this_machine_does_not_execute_is_refused_where_it_is_to_be_done(
    untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe: Recipe) -> None:
        raise RecipeError("not here")

    monkeypatch.setattr("llmcompress.compression.compressible.check_executed", refuse)
    require_compressible(resolve(untied), load_recipe("int8"), here=False)
    with pytest.raises(RecipeError, match="not here"):
        require_compressible(resolve(untied), load_recipe("int8"))


def test_the_survey_of_a_plan_refuses_as_the_run_does(untied: Path, tmp_path: Path) -> None:
    copied(untied, tmp_path / "reward", architectures=["Qwen2ForRewardModel"])
    (tmp_path / "plan.yaml").write_text(f"models: [./reward, {untied}]\nrecipes: [int8]\n")
    plan = load_plan(tmp_path / "plan.yaml")
    refused, taken = survey(planned_jobs(plan, tmp_path / "outputs"), plan)
    assert refused.outlook.failure is not None
    assert "Qwen2ForRewardModel is no causal language model but a reward model" in refused.outlook.failure.message
    assert taken.outlook.failure is None


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_whole_checkpoint_passes_by_its_headers(model_type: str, tmp_path: Path) -> None:
    source = resolve(build_checkpoint(tmp_path / "model", model_type, max_shard_size="500KB", tokenizer=False))
    found = require_convertible(source)
    assert found is not None
    assert found.model_type == model_type


def test_flat_names_pass_where_a_class_is_published_so(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "gpt2", "gpt2", tokenizer=False)
    flat = rewritten(
        checkpoint,
        tmp_path / "flat",
        lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
    )
    assert require_convertible(resolve(flat)) is not None


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            lambda t: t | {"v_head.summary.weight": t["lm_head.weight"][:1].clone()},
            "with a value head, as TRL",
            "alone",
        ),
        (lambda t: t | {"medusa_head.0.0.linear.weight": t["lm_head.weight"].clone()}, "heads of Medusa", "alone"),
        (_reward, "a classifier, reward or rerank model", "take the language model that it was made from"),
        (_headless, "an embedding model or another one without an output head", EXPORT),
        (_bare, "an embedding model or another one without an output head", EXPORT),
    ],
)
def test_heads_are_named_by_the_headers(change: Any, message: str, hint: str, untied: Path, tmp_path: Path) -> None:
    dry, wet = refusals(rewritten(untied, tmp_path / "model", change), load_recipe("int8"), tmp_path)
    assert message in dry.message
    assert hint in dry.hint
    assert str(dry) == str(wet)


def test_an_embedding_model_with_tied_weights_is_known_by_its_tensors(tied: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no causal language model but an embedding model or another one") as caught:
        require_convertible(resolve(rewritten(tied, tmp_path / "model", _bare)))
    assert EXPORT in caught.value.hint
    assert require_convertible(resolve(tied)) is not None


def test_what_transformers_stumbles_over_is_left_to_it(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def stumble(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(AutoConfig, "from_pretrained", stumble)
    tensor_names.require_same_tensors(resolve(untied), read_checkpoint(untied))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("modules.json", [{"type": f"{ST}.Transformer"}, {"type": f"{ST}.Pooling"}], "an embedding model"),
        ("modules.json", [{"type": f"{ST}.Transformer"}, {"type": f"{ST}.SpladePooling"}], "a sparse embedding model"),
        ("modules.json", [{"type": "sentence_transformers.cross_encoder.modules.LogitScore"}], "a rerank model"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "a rerank model"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}, "an embedding model"),
        ("sentence_bert_config.json", {"max_seq_length": 512}, "an embedding model"),
    ],
)
def test_models_of_sentence_transformers_are_named(
    name: str, content: object, kind: str, untied: Path, tmp_path: Path
) -> None:
    source = copied(untied, tmp_path / "model")
    (source / name).write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        require_convertible(resolve(source))
    assert caught.value.message == f"it is no causal language model but {kind} of sentence-transformers ({name})"
    assert (EXPORT in caught.value.hint) == (kind != "a rerank model")


def test_a_foreign_modules_json_says_nothing(untied: Path, tmp_path: Path) -> None:
    source = copied(untied, tmp_path / "model")
    (source / "modules.json").write_text('["other"]')
    other_libraries.refuse_other_libraries(resolve(source))


def test_a_value_head_in_a_file_of_its_own(untied: Path, tmp_path: Path) -> None:
    source = copied(untied, tmp_path / "model")
    (source / "value_head.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a value head, which lies in value_head\.safetensors") as caught:
        require_convertible(resolve(source))
    assert caught.value.hint == "remove value_head.safetensors to convert the language model without it"


def test_of_a_hub_source_small_files_alone_are_fetched(
    untied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in untied.iterdir()}
    files |= {"modules.json": b'[{"type": "sentence_transformers.models.Pooling"}]', "README.md": b"# card"}
    with running(FakeHub(files=files)) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        with pytest.raises(ModelError, match="an embedding model of sentence-transformers"):
            require_convertible(resolve("acme/tiny"))
        asked = {path.split("/resolve/")[1].partition("/")[2] for _, path in server.asked("/resolve/")}
    assert asked == {"config.json", "tokenizer_config.json", "modules.json"}


@pytest.mark.parametrize("sharded", [False, True])
def test_the_empty_tensors_of_zero_3_are_named_with_their_remedy(tmp_path: Path, untied: Path, sharded: bool) -> None:
    import torch

    def emptied(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: torch.empty(0, dtype=torch.bfloat16) if "norm" not in name else tensor
            for name, tensor in tensors.items()
        }

    model = rewritten(untied, tmp_path / "zero3", emptied)
    if sharded:
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        names = read_header(model / "model-00001-of-00001.safetensors")
        index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    dry, wet = refusals(model, load_recipe("int8"), tmp_path)
    assert "tensors are empty, as in a save under DeepSpeed's ZeRO-3: lm_head.weight, model.embed_tok" in dry.message
    assert "zero_to_fp32.py" in dry.hint
    assert "save_16bit_model" in dry.hint
    assert (wet.message, wet.hint) == (dry.message, dry.hint)


@pytest.mark.parametrize("sharded", [False, True])
def test_headers_of_the_hub_are_read_before_the_weights_are_fetched(
    untied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sharded: bool
) -> None:
    import torch

    def emptied(tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors | {"model.layers.0.mlp.up_proj.weight": torch.empty(0, dtype=torch.bfloat16)}

    whole, zero3 = rewritten(untied, tmp_path / "whole", lambda tensors: tensors), tmp_path / "zero3"
    rewritten(untied, zero3, emptied)
    shard = "model-00001-of-00001.safetensors" if sharded else "model.safetensors"
    message = r"1 of \d+ tensors are empty, .*: model\.layers\.0\.mlp\.up_proj\.weight"
    for model, refusal in ((whole, None), (zero3, message)):
        if sharded:
            names = read_header(model / "model.safetensors")
            (model / "model.safetensors").rename(model / shard)
            index = {"weight_map": dict.fromkeys(names, shard)}
            (model / "model.safetensors.index.json").write_text(json.dumps(index))
        files = {path.name: path.read_bytes() for path in model.iterdir()}
        with running(FakeHub(files=files)) as server:
            use(server.url, tmp_path / f"cache-{model.name}", monkeypatch)
            source = resolve("acme/tiny")
            if refusal is None:
                require_convertible(source)
            else:
                with pytest.raises(ModelError, match=refusal):
                    require_convertible(source)
            sent = sum(count for path, count in server.num_sent.items() if path.endswith(shard))
        assert 0 < sent <= 100_000 < len(files[shard])
        assert not (source.path / shard).exists()


def test_a_header_longer_than_the_first_bytes_and_a_shard_that_is_missing(
    untied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub_headers, "_FIRST_BYTES", 100)
    files = {path.name: path.read_bytes() for path in untied.iterdir()}
    with running(FakeHub(files=files)) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        found = hub_headers.read_hub_checkpoint(resolve("acme/tiny"))
    assert found.tensors == read_checkpoint(untied).tensors
    files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-2.safetensors"}}'
    del files["model.safetensors"]
    with running(FakeHub(files=files)) as server:
        use(server.url, tmp_path / "cache-of-shards", monkeypatch)
        with pytest.raises(
            HubError, match=r"its index names model-2\.safetensors, which is not there at revision main"
        ):
            hub_headers.read_hub_checkpoint(resolve("acme/tiny"))


@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        (
            "model.safetensors",
            b"\x08" + bytes(7) + b"not JSON",
            "acme/tiny: model.safetensors: the header does not begin",
        ),
        ("model.safetensors.index.json", b"{}", "acme/tiny: model.safetensors.index.json: weight_map is not"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../a.safetensors"}}',
            "acme/tiny: model.safetensors.index.json: it names '../a.safetensors'",
        ),
        ("model.ckpt", b"x", "acme/tiny: the weights are pickle files (model.ckpt), which can run code"),
    ],
)
def test_errors_of_headers_on_the_hub_name_the_repository_and_the_file(
    name: str, content: bytes, refusal: str, untied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in untied.iterdir() if path.name != "model.safetensors"}
    with running(FakeHub(files={**files, name: content})) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        source = resolve("acme/tiny")
        with pytest.raises((ModelError, SecurityError)) as caught:
            hub_headers.read_hub_checkpoint(source)
    assert str(caught.value).startswith(refusal)
    assert str(tmp_path) not in str(caught.value)
