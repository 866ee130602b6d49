"""Make the example cards in model_cards/ anew: compress the bundled checkpoint, measure, write the cards.

    python scripts/model_cards.py            # everything: some minutes, and the numbers of this machine
    python scripts/model_cards.py --render   # the cards alone, from the manifests and reports that lie there

Of each artifact the manifest, the recipe, the reports and the card are kept; a test renders the card from them again.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import llmcompress
from llmcompress.artifact import MANIFEST
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.spec import Recipe

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
CHECKPOINT = ROOT / "llmcompress" / "cli" / "demo_checkpoint"
KEPT = (MANIFEST, "recipe.yaml", "eval.json", "bench.json")

# Text that is not measured on; the packaged recipe's own comes from the Hub.
CALIBRATION = (
    f"calibration.dataset={CHECKPOINT / 'LICENSE-PYTHON.txt'}",
    "calibration.num_samples=16",
    "calibration.seq_len=128",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "none": (),
    "int8": (),
    "int8-ptq": CALIBRATION,
    "int4": (),
    "int4-mixed": (),
}
"""The cards' recipes and what is overridden in them."""

EVALUATION = llmcompress.EvalSpec(dataset=str(BUNDLED_TEXT), seq_len=256)
BENCHMARK = llmcompress.BenchSpec(prompt_tokens=(256,), new_tokens=(64,))


def recipe(name: str) -> Recipe:
    """The recipe of a card."""
    return llmcompress.load_recipe(name, RECIPES[name])


def directory_name(name: str) -> str:
    """The directory of a recipe's card."""
    return f"demo-{name}-ov"


def measure(output: Path) -> list[Path]:
    """Compress, evaluate and benchmark into ``output``; returns the artifacts."""
    artifacts = []
    for name in RECIPES:
        artifact = output / directory_name(name)
        llmcompress.compress(CHECKPOINT, recipe(name), artifact)
        llmcompress.evaluate(artifact, EVALUATION, reference=CHECKPOINT)
        artifacts.append(artifact)
    llmcompress.benchmark(artifacts, BENCHMARK)
    return artifacts


def main() -> None:
    """Measure unless told not to, and write the cards."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--render", action="store_true", help="write the cards from what lies there")
    if not parser.parse_args().render:
        with tempfile.TemporaryDirectory(prefix="model-cards-") as scratch:
            for artifact in measure(Path(scratch)):
                kept = CARDS / artifact.name
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir()
                for name in KEPT:
                    shutil.copyfile(artifact / name, kept / name)
    for name in RECIPES:
        print(llmcompress.write_card(CARDS / directory_name(name)).path)


if __name__ == "__main__":
    main()
