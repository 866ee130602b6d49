"""Names of the files that an output directory holds."""

MODEL, LANGUAGE_MODEL = "model", "language_model"
"""The only part of a text model, and the part of a vision-language model that generates."""
MODEL_XML, MODEL_BIN = "openvino_model.xml", "openvino_model.bin"
RECIPE = "recipe.yaml"
TRAINING_SEQUENCES = "training_sequences.npy"
"""Hashes of what a model's bits were trained on."""
MANIFEST = "llmcompress.json"
EVAL_REPORT, BENCH_REPORT, TUNE_REPORT = "eval.json", "bench.json", "tune.json"
SEARCH_REPORT = "search.json"
CARD = "README.md"
BENCHMARK_SCORES = {
    "gsm8k": ".eval_results/gsm8k.yaml",
    "mmlu_pro": ".eval_results/mmlu-pro.yaml",
    "gpqa_diamond_zeroshot": ".eval_results/gpqa.yaml",
}
"""Of a repository on the Hub, where leaderboards read them; by the task of lm-evaluation-harness."""


def model_files(part: str) -> tuple[str, str]:
    """The two files of a part of a model, by its name."""
    return f"openvino_{part}.xml", f"openvino_{part}.bin"


def part_of(stem: str) -> str:
    """The name of a part by that of its files: ``vision_embeddings_model`` of ``openvino_vision_embeddings_model``."""
    return stem.removeprefix("openvino_")
