"""Time and memory of importing quantized checkpoints of a real shape with random codes: GPTQ and FP8.

python benchmarks/import.py --directory /tmp/import
python benchmarks/import.py --directory /tmp/import --layers 4 --hidden 1024 --intermediate 2816

Needs Linux. Each import is a process of its own. What the libraries take is the peak of one of a model of a single
small layer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from generated_llama import body_arguments, generate

GROUP_SIZE = 128
CHILD = """
import sys, json, time
import llmcompress
started = time.perf_counter()
report = llmcompress.compress(sys.argv[1], "keep", sys.argv[2], overwrite=True, tokenizer=False, progress=None)
# What getrusage tells begins with the parent's.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"peak": peak, "duration_s": time.perf_counter() - started, "size": report.size_bytes}))
"""
LIMIT = 1.3


def gptq(rows: int, columns: int, generator: Any) -> dict[str, Any]:
    """Random codes of 4 bits, as GPTQ stores them."""
    import torch

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32, generator=generator)

    scales = torch.rand(columns // GROUP_SIZE, rows, generator=generator).half() * 0.01
    return {"qweight": words(columns // 8, rows), "qzeros": words(columns // GROUP_SIZE, rows // 8), "scales": scales}


def fp8(rows: int, columns: int, generator: Any) -> dict[str, Any]:
    """Random codes of 8 bits with scales of blocks, as DeepSeek and Qwen publish them; none is NaN."""
    import torch

    codes = torch.randint(0, 127, (rows, columns), dtype=torch.uint8, generator=generator)
    scales = torch.rand(-(-rows // GROUP_SIZE), -(-columns // GROUP_SIZE), generator=generator) * 1e-4
    return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale_inv": scales}


FORMATS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "sym": False, "desc_act": False}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [GROUP_SIZE, GROUP_SIZE]}),
}


def quantized(plain: Path, directory: Path, name: str) -> Path:
    """Write a checkpoint with random codes in place of the linear layers, unless it is there already."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if (directory / "model.safetensors").is_file():
        return directory
    make, settings = FORMATS[name]
    directory.mkdir(parents=True, exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(0), {}
    with safe_open(plain / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            if not key.endswith("_proj.weight"):
                tensors[key] = file.get_tensor(key)
                continue
            rows, columns = file.get_slice(key).get_shape()
            parts = make(rows, columns, generator)
            tensors |= {f"{key.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for path in plain.glob("*.json"):
        shutil.copyfile(path, directory / path.name)
    config = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return directory


def measure(source: Path) -> dict[str, float]:
    """Import it in a process of its own."""
    with tempfile.TemporaryDirectory(dir=source.parent) as output:
        command = [sys.executable, "-c", CHILD, str(source), f"{output}/out"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Print time, size and memory for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="Where the checkpoints are written, and stay.")
    parser.add_argument("--formats", nargs="+", choices=sorted(FORMATS), default=sorted(FORMATS))
    body_arguments(parser)
    args = parser.parse_args()
    body = {"layers": args.layers, "hidden": args.hidden, "intermediate": args.intermediate}
    shape = "-".join(str(size) for size in body.values())
    small = generate(args.directory / "small", layers=1, hidden=256, intermediate=512, vocabulary=512)
    plain = generate(args.directory / f"plain-{shape}", **body)
    failed = False
    for name in args.formats:
        libraries = measure(quantized(small, args.directory / f"small-{name}", name))
        started = time.perf_counter()
        source = quantized(plain, args.directory / f"{name}-{shape}", name)
        print(f"{name}: written in {time.perf_counter() - started:.0f} s", flush=True)
        found = measure(source)
        above = found["peak"] - libraries["peak"]
        ratio = above / found["size"]
        failed |= ratio > LIMIT
        print(
            f"{name}: {found['duration_s']:.0f} s, of which the libraries {libraries['duration_s']:.0f} s; output "
            f"{found['size'] / 1e9:.3f} GB; peak {found['peak'] / 1e9:.2f} GB, {above / 1e9:.2f} GB above the "
            f"libraries' {libraries['peak'] / 1e9:.2f} GB: {ratio:.2f} times the output",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
