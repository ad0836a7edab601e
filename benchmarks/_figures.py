"""What every benchmark shares: its options, and one JSON object a line for each figure."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def options(description: str) -> argparse.Namespace:
    """``--quick`` for a run under a minute, ``--data DIR`` for the folder with `cifar10`."""
    return parser(description).parse_args()


def parser(description: str) -> argparse.ArgumentParser:
    """The same, for more options to be added."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer samples and repeats, under a minute")
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder that holds cifar10/")
    return parser


def emit(name: str, value: float, unit: str, target: str = "") -> None:
    """Print one figure: `target` says what it is held against, empty for a figure given for comparison."""
    print(json.dumps({"name": name, "value": round(value, 6), "unit": unit, "target": target}), flush=True)
