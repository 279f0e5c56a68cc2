"""Measure a study, or write its tables into docs/.

python -m benchmarks STUDY run ...    a result is kept after each unit; `-h` tells what it needs
python -m benchmarks STUDY table      all kept results to its page
"""

from __future__ import annotations

import argparse
import importlib
import logging
from collections.abc import Sequence

from benchmarks.study import Study, commands

STUDIES = {
    "additions": "speed.additions",
    "duplicates": "studies.duplicates",
    "fresh_draws": "studies.fresh_draws",
    "groups": "studies.groups",
    "honest_figure": "studies.honest_figure",
    "label_errors": "studies.label_errors",
    "long_tailed": "studies.long_tailed",
    "new_classes": "studies.new_classes",
    "onnx_graph": "studies.onnx_graph",
    "photographs": "studies.photographs",
    "priors": "studies.priors",
    "ranks": "studies.ranks",
    "rejections": "studies.rejections",
    "scaling": "speed.scaling",
    "serve": "speed.serving",
    "speed": "speed.questions",
    "teaching": "studies.teaching",
}


def load(name: str) -> Study:
    """Return a study of `STUDIES`."""
    study: Study = importlib.import_module(f"benchmarks.{STUDIES[name]}").STUDY
    return study


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of one study's commands; what it parses has the command's `work`."""
    study = load(name)
    about = importlib.import_module(f"benchmarks.{STUDIES[name]}").__doc__
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = parser.add_subparsers(required=True)
    for word, command in commands(name, study).items():
        one = words.add_parser(word)
        command.arguments(one)
        one.set_defaults(work=command.work)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run one command of one study."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="run|table ...")
    asked = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    given = vars(parser_of(asked.study).parse_args(asked.rest))
    given.pop("work")(**given)


if __name__ == "__main__":
    main()
