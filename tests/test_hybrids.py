"""Models of recurrent and attention layers: their traced graphs have nodes that no result needs."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from layers_fixture import folder_with
from tiny_models import write_tokenizer

import llmcompress
from llmcompress.benchmarking.openvino_runtime import OpenvinoRuntime
from llmcompress.benchmarking.worker import open_model as open_on
from llmcompress.cli.chat_model import TalkSpec, open_model
from llmcompress.errors import ModelError, UsageError
from llmcompress.graph.decoding import Decoder, compile_decoder, generate
from llmcompress.graph.device import compile_model, properties_of
from llmcompress.graph.recurrence import recurrence
from llmcompress.loaders.environments import fitting_layer
from llmcompress.spec import BenchSpec, EvalSpec
from llmcompress.spec.benchmark import Shape
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Reporter, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAMBA = Path(__file__).with_name("mamba_ir.npz")
"""Converted by optimum-intel 2.2 with transformers 5.3; the logits are torch's, in f32, of two windows of a text."""
NUM_TOKENS = 40
COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
}
GRANITE: dict[str, Any] = {
    "shared_intermediate_size": 96,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
    "layer_types": ["mamba", "attention"],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("granitemoehybrid", {**GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0}),
    "granite-moe": (
        "granitemoehybrid",
        {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    ),
    "falcon-mamba": ("falcon_mamba", {"state_size": 8, "expand": 2, "conv_kernel": 4}),
    "mamba": ("mamba", {"state_size": 8, "expand": 2, "conv_kernel": 4}),
    "zamba2": (
        "zamba2",
        {
            "intermediate_size": 96,
            "layers_block_type": ["mamba", "hybrid"],
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "mamba_headdim": 32,
            "num_key_value_heads": 4,
            "chunk_size": 64,
            "num_mem_blocks": 1,
        },
    ),
    "lfm2": ("lfm2", {"intermediate_size": 96, "layer_types": ["conv", "full_attention"]}),
    "lfm2-moe": (
        "lfm2_moe",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}
ONE_BY_ONE = {"falcon-mamba", "mamba", "zamba2"}
"""Stock's graphs of these read no text in pieces, and by Mamba's scan a long one in one call is coarse. Zamba2's in one
call is torch's, which beyond ``chunk_size`` tokens is not that of its own cache."""
MAX_ERROR = 1e-4
"""Of logits up to 3, in f32; measured: 2e-6 in most families, 1e-5 in qwen3-next."""


def _checkpoint(directory: Path, model_type: str, fields: dict[str, Any]) -> Any:
    """Write a random f32 checkpoint and return its torch model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**COMMON, **fields, "initializer_range": 0.08})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def test_a_mamba_is_benchmarked_as_optimum_feeds_it(mamba: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch
    from optimum.intel import OVModelForCausalLM

    def shape(inputs: Any) -> tuple[int, ...]:
        return tuple(np.asarray(getattr(inputs["input_ids"], "data", inputs["input_ids"])).shape)

    theirs: list[tuple[int, ...]] = []
    model = OVModelForCausalLM.from_pretrained(mamba)
    model.compile()
    start = model.request.start_async
    model.request.start_async = lambda inputs, **options: (theirs.append(shape(inputs)), start(inputs, **options))[1]
    prompt = torch.arange(3, 11)[None]
    model.generate(input_ids=prompt, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    ours: list[tuple[int, ...]] = []
    run = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda self, tensors: (ours.append(shape(tensors)), run(self, tensors))[1])
    runtime = OpenvinoRuntime(mamba)
    runtime.open("CPU", {})
    runtime.run(Shape(1, 0, prompt.shape[1], 4), 0)
    assert ours == theirs == [(1, 8), (1, 1), (1, 1), (1, 1)]


def test_a_benchmark_says_how_a_recurrent_model_was_fed(mamba: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmcompress.cli.bench import print_reports

    spec = BenchSpec(prompt_tokens=(8,), new_tokens=(2,), repetitions=1, warmup_runs=0)
    reports = llmcompress.benchmark([mamba], spec)
    assert reports[0].settings[0].is_recurrent
    print_reports(reports, "table")
    assert "mamba: the prompt went through in one call, as Optimum's generation feeds it; its recurrent layers" in (
        capsys.readouterr().out
    )


def _logits(compiled: Any, ids: NDArray[np.int64], sizes: list[int]) -> NDArray[np.float32]:
    """Logits ``[sequences, tokens, vocabulary]`` of ids that are fed in calls of these sizes."""
    import numpy as np

    decoder, start, found = Decoder(compiled), 0, []
    for size in sizes:
        decoder.run(decoder.tensors(ids[:, start : start + size], start))
        found.append(decoder.request.get_tensor("logits").data.copy())
        start += size
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name == "granite" else [pytest.mark.slow]) for name in FAMILIES],
)
def test_a_hybrid_compresses_as_stock_does_and_computes_as_torch_does(family: str, tmp_path: Path) -> None:
    layer = fitting_layer(FAMILIES[family][0])
    if layer is None:
        check_family(family, tmp_path)
    else:
        run_supervised(check_family, {"family": family, "directory": tmp_path}, search_path=(folder_with(layer),))


def check_family(family: str, directory: Path, *, progress: Reporter = silent) -> None:
    """The test itself, by the transformers of this process."""
    import numpy as np
    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model_type, fields = FAMILIES[family]
    checkpoint = directory / "checkpoint"
    module = _checkpoint(checkpoint, model_type, fields)
    loaded = llmcompress.load(checkpoint)
    llmcompress.compress(loaded, "int8", directory / "ours", tokenizer=False)
    stock = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(bits=8, sym=False)
    )
    stock.save_pretrained(directory / "stock")
    ours, theirs = (directory / name / "openvino_model.bin" for name in ("ours", "stock"))
    assert filecmp.cmp(ours, theirs, shallow=False)

    ids = np.random.default_rng(0).integers(3, 256, (2, NUM_TOKENS))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), use_cache=False).logits.numpy()
    compiled = compile_model(loaded.clone().model, "CPU", properties_of("CPU", "pinned"))
    assert (recurrence(compiled) is not None) == (family in ONE_BY_ONE)
    if family in ONE_BY_ONE:
        _check_one_by_one(compiled, ids, expected)
        return
    for sizes in ([NUM_TOKENS], [13, 20, 7], [1] * NUM_TOKENS):
        np.testing.assert_allclose(_logits(compiled, ids, sizes), expected, rtol=0, atol=MAX_ERROR)


def _check_one_by_one(compiled: Any, ids: NDArray[np.int64], expected: NDArray[np.float32]) -> None:
    """Compare a graph that goes on token by token with torch."""
    import numpy as np

    num_tokens = ids.shape[1]
    for prompt in (1, 2, num_tokens // 2, num_tokens):
        found = _logits(compiled, ids, [prompt] + [1] * (num_tokens - prompt))
        # Measured of half of the tokens in one call, in falcon-mamba: 2e-4.
        bound = MAX_ERROR if prompt < 3 else 1e-2
        np.testing.assert_allclose(found[:, prompt - 1 :], expected[:, prompt - 1 :], rtol=0, atol=bound)
    with pytest.raises(ModelError, match="the graph goes on from its state token by token, and 3 tokens after 5 were"):
        _logits(compiled, ids, [5, 3])


@pytest.fixture
def mamba(tmp_path: Path) -> Path:
    """An OpenVINO directory of a Mamba of two layers, which other versions of transformers export."""
    import numpy as np

    directory = tmp_path / "mamba"
    directory.mkdir()
    with np.load(MAMBA) as kept:
        for field, name in (("xml", "openvino_model.xml"), ("bin", "openvino_model.bin"), ("config", "config.json")):
            (directory / name).write_bytes(kept[field].tobytes())
    write_tokenizer(directory)
    return directory


def test_a_mamba_is_fed_as_torch_computes(mamba: Path) -> None:
    import numpy as np

    compiled = compile_decoder(mamba, properties=properties_of("CPU", "pinned"))
    with np.load(MAMBA) as kept:
        _check_one_by_one(compiled, kept["token_ids"], kept["logits"])


def test_a_mamba_is_evaluated_token_by_token(mamba: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import numpy as np

    text = tmp_path / "text.txt"
    text.write_text("A state keeps what was read, one token after another.")
    spec = EvalSpec(dataset=str(text), seq_len=16, num_windows=2, precision="pinned", backend="stateful")
    report = llmcompress.evaluate(mamba, spec)
    assert "mamba: its recurrent layers are exact token by token alone: windows are fed so" in caplog.text
    with np.load(MAMBA) as kept:
        token_ids, logits = kept["token_ids"], kept["logits"].astype(np.float64)
    first = 16 // 2 + 1
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    following = np.take_along_axis(log_probabilities[:, first - 1 : -1], token_ids[:, first:, None], axis=2)
    assert report.text.num_scored_tokens == following.size
    assert report.model.perplexity.perplexity.value == pytest.approx(np.exp(-following.mean()), rel=1e-4)
    assert report.chunk == 1
    assert next(check for check in report.gate.checks if check.name == "finite_logits").passed
    with pytest.raises(
        UsageError, match="`chunk=8`: with its recurrent layers the graph is exact token by token alone"
    ):
        llmcompress.evaluate(mamba, spec.model_copy(update={"chunk": 8}))


def test_a_mamba_continues_as_torch_does(mamba: Path) -> None:
    import numpy as np

    compiled = compile_decoder(mamba, properties=properties_of("CPU", "pinned"))
    with np.load(MAMBA) as kept:
        token_ids, logits = kept["token_ids"][0], kept["logits"][0]
    for count in (1, 6, 16):
        made = generate(compiled, token_ids[:count].tolist(), eos=frozenset(), max_new_tokens=1)
        assert made.token_ids == (int(logits[count - 1].argmax()),)


def test_a_mamba_is_talked_to_by_our_decoder(mamba: Path) -> None:
    answer = open_model(mamba, TalkSpec(max_new_tokens=5))([{"role": "user", "content": "hi"}], lambda text: False)
    assert answer.num_tokens == 5


def test_a_mamba_is_benchmarked_without_a_depth(mamba: Path) -> None:
    runtime = OpenvinoRuntime(mamba)
    runtime.open("CPU", {})
    assert len(runtime.run(Shape(2, 0, 8, 4), 0).tokens) == 4
    opened = open_on(runtime, "CPU", {})
    assert opened.is_recurrent
    with pytest.raises(ModelError, match="the graph goes on from its state token by token, and 8 tokens after 8 were"):
        runtime.run(Shape(1, 8, 8, 4), 0)
