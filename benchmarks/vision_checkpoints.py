"""Tiny vision-language models with processors: of transformers, or of stand-ins for code of repositories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vision_answers import Asked, ask, fit

CODE = "vision_stand_ins"


class StandIn(NamedTuple):
    """What lies next to a model whose class is code of its repository."""

    tokens: dict[str, str]
    """Special ones, whose ids begin at 266."""
    mark: str
    """Of a picture, before a question."""
    save_images: Callable[[Path], None]
    """Writes what makes numbers of pictures."""


def _clip(directory: Path) -> None:
    from transformers import CLIPImageProcessor

    square = {"height": 56, "width": 56}
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=square).save_pretrained(directory)


def _own(stem: str, directory: Path, **more: Any) -> None:
    """Processors that are code of the repository too."""
    code = {auto: f"{CODE}.{stem}{auto.removeprefix('Auto')}" for auto in ("AutoProcessor", "AutoImageProcessor")}
    classes = {"processor_class": f"{stem}Processor", "image_processor_type": f"{stem}ImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps({"auto_map": code, **classes, **more}))


def _with_encoder(directory: Path) -> None:
    """What stock's exporter opens too: the configuration of the encoder that a Phi-3-vision names."""
    from transformers import CLIPConfig
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    colours = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    _own("Phi3V", directory, num_crops=1, num_img_tokens=144, **colours)
    CLIPConfig(vision_config={"image_size": 336, "patch_size": 14}).save_pretrained(directory / "encoder")
    config = json.loads((directory / "config.json").read_text())
    config["img_processor"]["model_name"] = str(directory / "encoder")
    (directory / "config.json").write_text(json.dumps(config))


STAND_INS = {
    "internvl_chat": StandIn(
        {"img_start_token": "<img>", "img_end_token": "</img>", "img_context_token": "<IMG_CONTEXT>"},
        "<image>\n",
        _clip,
    ),
    "phi3_v": StandIn({"image_token": "<|image_1|>"}, "<|image_1|>\n", _with_encoder),
    "phi4mm": StandIn(
        {"image_token": "<|image_1|>", "place": "<|endoftext10|>", "sound": "<|endoftext11|>"},
        "<|image_1|>",
        partial(_own, "Phi4Mm"),
    ),
}


def is_stand_in(checkpoint: Path) -> bool:
    """Whether its model is code of its own."""
    return (checkpoint / f"{CODE}.py").exists()


def opened(checkpoint: Path) -> Any:
    """The torch model of a checkpoint, in f32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForCausalLM if is_stand_in(checkpoint) else AutoModelForImageTextToText
    return kind.from_pretrained(checkpoint, trust_remote_code=is_stand_in(checkpoint)).to(torch.float32).eval()


def asked_of(checkpoint: Path) -> list[Asked]:
    """The questions that the model of a checkpoint is fitted to."""
    from llmcompress.loaders.processor import open_processor

    model_type = json.loads((checkpoint / "config.json").read_text())["model_type"]
    made = STAND_INS.get(model_type)
    asked = ask(checkpoint, open_processor(checkpoint, trust_remote_code=made is not None), made and made.mark)
    if model_type in ("smolvlm", "idefics3"):
        # Their tokenizers give what their classes do not take.
        for each in asked:
            each.inputs.pop("token_type_ids", None)
    return asked


def make_random(model_type: str, directory: Path) -> Path:
    """Write a tiny random model with its processor."""
    from vision_fixture import build_vision

    return (build_stand_in if model_type in STAND_INS else build_vision)(model_type, directory)


def make_checkpoint(model_type: str, directory: Path) -> Path:
    """Write a tiny model with its processor, fitted to definite answers about three pictures."""
    made = make_random(model_type, directory)
    module = opened(made)
    fit(module, asked_of(made))
    module.save_pretrained(made)
    return made


def build_stand_in(model_type: str, directory: Path) -> Path:
    """Write a random f32 checkpoint whose configuration names the file of stand-ins as its repository's code."""
    import torch
    from tiny_models import write_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    directory.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name(f"{CODE}.py"), directory)
    stem = model_type.title().replace("_", "")
    names = {"AutoConfig": f"{stem}Config", "AutoModelForCausalLM": f"{stem}ForCausalLM"}
    described = {"model_type": model_type, "architectures": [names["AutoModelForCausalLM"]]}
    code = {auto: f"{CODE}.{name}" for auto, name in names.items()}
    (directory / "config.json").write_text(json.dumps({**described, "auto_map": code}))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True).to(torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of exactly one and biases of zero would be folded out of the graph
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    tokenizer = write_tokenizer(directory, named=STAND_INS[model_type].tokens)
    # As published ones say it, whose models take nothing else.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(directory)
    STAND_INS[model_type].save_images(directory)
    return directory
