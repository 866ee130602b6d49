"""Names of the files that an output directory holds."""

MODEL_XML, MODEL_BIN = "openvino_model.xml", "openvino_model.bin"
RECIPE = "recipe.yaml"
MANIFEST = "llmcompress.json"
EVAL_REPORT, BENCH_REPORT, TUNE_REPORT = "eval.json", "bench.json", "tune.json"
CARD = "README.md"
