"""`optimum-cli llmcompress ...`: the same command line, under Optimum's.

Installed as ``optimum/commands/register/register_llmcompress.py``, where Optimum looks for commands; it is read
whenever ``optimum-cli`` starts, so nothing of llmcompress is imported before it is called.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo  # noqa: TID253 - it is for Optimum


class LlmcompressCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Hands everything after ``llmcompress`` to llmcompress's own command line."""

    COMMAND = CommandInfo(name="llmcompress", help="Compress for OpenVINO and prove on the runtime what it cost.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take every argument as it is, options and --help included: with no prefix, nothing looks like an option."""
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Run llmcompress and exit with its code."""
        from llmcompress.cli import main

        sys.argv = ["llmcompress", *self.args.arguments]
        main()


REGISTER_COMMANDS = [LlmcompressCommand]
