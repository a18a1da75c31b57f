"""The command line of benchmarks that embed scored pairs with an export, beside cft."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cft.system.errors import UserError


def run(description: str, compare: Callable[[argparse.Namespace], int], **more: dict[str, Any]) -> int:
    """Parse the command line, compare, and return the status: 2 if the user can mend what is wrong.

    Args:
        description: what the benchmark does. compare: the benchmark. more: its own options, as argparse takes them.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, how in more.items():
        parser.add_argument(f"--{name}", **how)
    parser.add_argument("--pairs", required=True, type=Path, help="scored pairs: sentence1, sentence2, score")
    parser.add_argument("--most", type=int, default=500, help="so many pairs, the first ones (500)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("options", nargs="+", help="the embedder, as cft.export takes it: run=NAME")
    try:
        return compare(parser.parse_args())
    except UserError as error:
        print(f"cft: {error}", file=sys.stderr)
        return 2
