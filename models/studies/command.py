"""`attnserve study`: run what the log of a study lacks, and write the page that shows what the logs hold."""

import argparse
from pathlib import Path

from attnserve.models.studies.runs import log_of, run_missing
from attnserve.models.studies.table import STUDIES
from attnserve.models.studies.zoo import write_zoo

PAGE, FIGURES, ZOO = "results.md", "results", "zoo.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the words of `attnserve study`."""
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    run = words.add_parser("run", help="train what the log of a study lacks; may be stopped and started again")
    run.add_argument("study", choices=tuple(STUDIES), help="whose runs")
    page = words.add_parser("page", help=f"write {PAGE} and {ZOO} from logs and cards")
    page.add_argument("--docs", default="docs", metavar="FOLDER", help="of the pages (default: %(default)s)")
    page.add_argument(
        "--checkpoints", default="checkpoints", metavar="FOLDER", help="with cards (default: %(default)s)"
    )
    for word in (run, page):
        word.add_argument("--logs", default="results", metavar="FOLDER", help="of the logs (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit code.

    Raises:
        ValueError: a file is no log, or lacks a run that the page shows; names it.
        RuntimeError: training diverged.
    """
    folder = Path(arguments.logs)
    if arguments.word == "run":
        study = STUDIES[arguments.study]
        num_added = run_missing(study, folder)
        print(f"{log_of(study, folder).path}: {num_added} runs added, {len(list(study.runs()))} are all")
        return 0
    # matplotlib is slow to import, and only needed here.
    from attnserve.models.studies.page import write_page

    docs = Path(arguments.docs)
    write_page(docs / PAGE, docs / FIGURES, folder)
    write_zoo(docs / ZOO, Path(arguments.checkpoints))
    print(f"wrote {docs / PAGE}, {docs / FIGURES}, {docs / ZOO}")
    return 0
