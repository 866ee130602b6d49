"""Sparsity that training finds: NNCF's regularization-based pruning with transformers' Trainer, then int4 for OpenVINO.

NNCF gives every weight of the linear layers a mask that is learned with them, and a loss that leads the share of zeros
to the one wanted. The rows are texts of a JSON lines file, in the field ``text``. What is left is an ordinary
checkpoint; int4 codes hold each of its zeros exactly.

    python examples/prune_while_training.py meta-llama/Llama-3.2-1B texts.jsonl pruned out --ratio 0.5 --num-steps 500
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import nncf
import torch
from datasets import load_dataset
from nncf.torch.function_hook.pruning.rb.algo import get_pruned_modules
from nncf.torch.function_hook.pruning.rb.losses import RBLoss
from nncf.torch.function_hook.pruning.rb.modules import binary_mask
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import llmcompress


class PruningTrainer(Trainer):
    """Adds NNCF's loss to the model's own."""

    towards_ratio: RBLoss

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch."""
        loss: torch.Tensor = super().compute_loss(model, *args, **kwargs)
        return loss + self.towards_ratio()


def main() -> None:
    """Prune while training, save the checkpoint, and compress it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Hub id or checkpoint directory")
    parser.add_argument("rows", help="JSON lines file with the field text")
    parser.add_argument("checkpoint", help="where the pruned checkpoint goes")
    parser.add_argument("output", help="where the OpenVINO model goes")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of zeros")
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--mask-learning-rate", type=float, default=0.1)
    parser.add_argument("--seq-len", type=int, default=256)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.source)
    rows = load_dataset("json", data_files=args.rows, split="train")

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        ids = tokenizer(row["text"], truncation=True, max_length=args.seq_len)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    original = AutoModelForCausalLM.from_pretrained(args.source)
    model = nncf.prune(
        AutoModelForCausalLM.from_pretrained(args.source, dtype=torch.float32),
        mode=nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED,
        ignored_scope=nncf.IgnoredScope(patterns=[".*embed.*", ".*lm_head.*"], validate=False),
        examples_inputs={"input_ids": torch.zeros((1, 2), dtype=torch.int64)},
    )
    masks = get_pruned_modules(model)
    of_masks = [mask.mask for mask in masks.values()]
    others = [each for each in model.parameters() if all(each is not mask for mask in of_masks)]
    optimizer = torch.optim.Adam(
        [{"params": others, "lr": args.learning_rate}, {"params": of_masks, "lr": args.mask_learning_rate}]
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=args.num_steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=args.num_steps, per_device_train_batch_size=1, gradient_accumulation_steps=8,
            report_to=[], save_strategy="no", logging_steps=10,
        )  # fmt: skip
        trained_on = rows.map(tokenize, remove_columns=rows.column_names)
        trainer = PruningTrainer(
            model=model, args=arguments, train_dataset=trained_on, optimizers=(optimizer, schedule)
        )
        trainer.towards_ratio = RBLoss(model, args.ratio)
        trainer.train()

    # Plain modules take what was learned: nothing of NNCF is left in the checkpoint.
    num_zeros = num_weights = 0
    with torch.no_grad():
        learned = dict(model.named_parameters())
        for name, parameter in original.named_parameters():
            mask = binary_mask(masks[name].mask) if name in masks else 1
            parameter.copy_(learned[name] * mask)
            if name in masks:
                num_zeros, num_weights = num_zeros + int((parameter == 0).sum()), num_weights + parameter.numel()
    original.save_pretrained(args.checkpoint)
    tokenizer.save_pretrained(args.checkpoint)
    print(f"{num_zeros / num_weights:.1%} of the weights of the linear layers are zero")
    llmcompress.compress(args.checkpoint, args.recipe, args.output)
    print(f"Next: llmcompress eval {args.output} --reference {args.source}")


if __name__ == "__main__":
    main()
