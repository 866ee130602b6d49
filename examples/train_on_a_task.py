"""Quantization-aware training on a task: int4 weights that learn to answer, with transformers' Trainer.

The rows are texts of a JSON lines file, in the field ``text``. What is trained are the codes, scales and zero points of
the int4 weights and nothing else, so that the result is an ordinary int4 model for OpenVINO.

    python examples/train_on_a_task.py meta-llama/Llama-3.2-1B-Instruct answers.jsonl out --num-steps 200
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, Trainer, TrainingArguments

import llmcompress

RATES = {"offset": 5e-3, "scale": 1e-3, "zero_point": 5e-2}


def main() -> None:
    """Train, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Hub id or checkpoint directory")
    parser.add_argument("rows", help="JSON lines file with the field text")
    parser.add_argument("output")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--seq-len", type=int, default=256)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.source)
    rows = load_dataset("json", data_files=args.rows, split="train")

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        ids = tokenizer(row["text"], truncation=True, max_length=args.seq_len)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    model = llmcompress.prepare_for_training(args.source, args.recipe)
    groups = [
        {"params": [each for name, each in model.named_parameters() if name.endswith(kind) and each.requires_grad]}
        | {"lr": rate}
        for kind, rate in RATES.items()
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=args.num_steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=args.num_steps, per_device_train_batch_size=1, gradient_accumulation_steps=8,
            report_to=[], save_strategy="no", logging_steps=10,
        )  # fmt: skip
        trained_on = rows.map(tokenize, remove_columns=rows.column_names)
        Trainer(model=model, args=arguments, train_dataset=trained_on, optimizers=(optimizer, schedule)).train()
    llmcompress.export_trained(model.eval(), args.recipe, args.output)
    print(f"Next: llmcompress eval {args.output} --reference {args.source}")


if __name__ == "__main__":
    main()
