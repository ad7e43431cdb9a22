"""`attnserve bench`: options of both kinds of it, and the run of a load from its first question to its report."""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnserve.kernels import OFF
from attnserve.records import to_json
from attnserve.service.bench.load import Load
from attnserve.service.bench.options import LoadOptions, add_load_arguments, list_given, read_options
from attnserve.service.bench.plan import Plan, draw_plan
from attnserve.service.bench.report import Window, format_table, summarise
from attnserve.service.bench.target import Target, read_target
from attnserve.service.bench.timer import make_loop

ENGINE_DEFAULTS = {"rounds": 3, "num_threads": 1, "device": "cpu", "kernels": OFF}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve bench`."""
    # No group of argparse's, which takes the value of an option that does not exist for a bundle and blames --url.
    parser.add_argument("bundle", nargs="?", help="measure the engine on a bundle folder, REPOSITORY/model/version")
    parser.add_argument("--url", help="or a running service, as http://127.0.0.1:8000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    group = parser.add_argument_group("the engine, with a bundle")

    def add(flag: str, help_text: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, help=help_text, **settings)

    add("--rounds", "times each measurement is repeated (default: 3)", type=int, metavar="N")
    add("--num-threads", "compute threads (default: 1)", type=int, metavar="N")
    add("--device", "where to run (default: cpu)", choices=("auto", "cpu", "cuda"))
    add("--kernels", "native kernels: auto, or the path of their library (default: off)", metavar="KERNELS")
    add_load_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Measure a bundle's engine or a running service; returns the exit code.

    Raises:
        ValueError: names the flag, what was expected and what came.
        KeyboardInterrupt: a load was interrupted; what was measured until then is printed.
    """
    if (parsed.bundle is None) == (parsed.url is None):
        raise ValueError(f"bundle: expected one, or --url, got {'neither' if parsed.url is None else 'both'}")
    if parsed.json is not None and not parsed.json.parent.is_dir():
        # Said now, not when everything is measured.
        raise ValueError(f"--json: expected a file in a folder that exists, got {parsed.json}")
    if parsed.url is None:
        if given := list_given(parsed):
            raise ValueError(f"bundle: expected no options of a load beside it, got {', '.join(given)}")
        from attnserve.service.bench.engine import run as run_engine

        return run_engine(argparse.Namespace(**{**ENGINE_DEFAULTS, **vars(parsed)}))
    if given := [name for name in ENGINE_DEFAULTS if hasattr(parsed, name)]:
        raise ValueError(f"--url: expected no options of an engine beside it, got {', '.join(given)}")
    return run_load(read_options(parsed), json_file=parsed.json, quiet=parsed.quiet)


def run_load(options: LoadOptions, *, json_file: Path | None, quiet: bool) -> int:
    """Ask what the model is, draw all requests, send them, report.

    Raises:
        ValueError: no such server or model, or lengths that the model does not take.
        KeyboardInterrupt: as above.
    """
    from tqdm import tqdm

    from attnserve.service.bench.client import open_client, raise_file_limit

    raise_file_limit()
    is_open = options.num_connections is None
    interrupted = False
    with asyncio.Runner(loop_factory=make_loop) as runner:
        client = runner.run(open_client(options))
        try:
            target = read_target(runner.run(client.describe()), options.model)
            plan = draw_plan(options, target)
            silent = quiet or not sys.stderr.isatty()
            with tqdm(total=len(plan.arrivals_s) or None, desc=target.name, unit="request", disable=silent) as bar:
                load = Load(client.ask, plan.bodies, timeout_s=options.timeout_s, notify=bar.update)
                begin = time.process_time()
                try:
                    if options.num_connections is None:
                        runner.run(load.offer(plan.arrivals_s))
                    else:
                        runner.run(load.saturate(options.num_connections, options.seconds))
                except KeyboardInterrupt:
                    interrupted = True
                cpu_seconds = time.process_time() - begin
        finally:
            runner.run(client.close())
    window = Window(
        start_s=options.warmup_s, end_s=min(options.seconds, load.elapsed_s) if interrupted else options.seconds
    )
    if window.seconds <= 0:
        print("interrupted before the warm-up was over: nothing was measured", file=sys.stderr)
        raise KeyboardInterrupt
    summary = summarise(
        load.outcomes,
        window,
        deadline_ms=options.deadline_ms,
        is_open=is_open,
        client_cpu=cpu_seconds / load.elapsed_s,
    )
    print(format_heading(options, target, plan))
    print(format_table(summary))
    if json_file is not None:
        document = {
            # A secret is no figure.
            "options": to_json(replace(options, api_key="")),
            "target": to_json(target),
            "lengths": {
                "shortest": plan.shortest,
                "mean": plan.mean_length,
                "longest": plan.longest,
                "num_cut": plan.num_cut,
            },
            "interrupted": interrupted,
            **to_json(summary),
        }
        json_file.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    if interrupted:
        raise KeyboardInterrupt
    return 0


def format_heading(options: LoadOptions, target: Target, plan: Plan) -> str:
    """What was measured."""
    if options.num_connections is None:
        load = f"{options.rate:g} requests/s ({options.arrivals})"
    else:
        load = f"{options.num_connections} connections, each asking as soon as it is answered,"
    cut = f", {plan.num_cut} cut to what the model takes" if plan.num_cut else ""
    lengths = f"{plan.shortest}-{plan.longest} steps (mean {plan.mean_length:.0f}{cut})"
    deadline = "" if options.deadline_ms is None else f", deadline {options.deadline_ms:g} ms"
    return (
        f"{target.name} version {target.version} ({target.task}) at {options.url}\n"
        f"{load} for {options.duration_s:g} s after {options.warmup_s:g} s of warm-up{deadline}\n"
        f"sequences per request: {options.num_sequences}, of {lengths}; seed {options.seed}\n"
    )
