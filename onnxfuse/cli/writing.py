"""The options of what fusing writes beside the model, and where its weights lie."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of a command that writes a model."""
    parser.add_argument(
        "--external-data",
        metavar="FILE",
        help="keep the weights in this file beside OUT (a model over 2 GiB gets one by itself)",
    )
    parser.add_argument(
        "--external-data-threshold",
        metavar="SIZE",
        help="smaller weights stay in the model where it has a data file (default 1KiB)",
    )
    parser.add_argument(
        "--save-repro",
        metavar="DIR",
        help="where a proof fails, write the guilty region's nodes and inputs to this directory",
    )


def threshold(chosen: argparse.Namespace) -> int | None:
    """The bytes from which on a weight goes to the data file. Raises `InputError`."""
    from onnxfuse.budget import amount

    size = chosen.external_data_threshold
    return None if size is None else amount(size, "external-data-threshold")
