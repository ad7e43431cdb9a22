"""`attnserve exports`: export jobs of a service: asked for, listed, followed, cancelled, over HTTP."""

import argparse
import json
import sys
import urllib.parse
from collections.abc import Callable
from typing import Any

from attnserve.certificate import PRECISIONS
from attnserve.following import (
    EXPORTS,
    Job,
    check_answer,
    describe_end,
    follow_events,
    path_of,
    start_export,
    wait_until_served,
)
from attnserve.jobs import STATES
from attnserve.progress import show_lines
from attnserve.remote import Remote, add_remote_arguments, read_remote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve exports`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=summary, description=summary)
        add_remote_arguments(action)
        return action

    listing = add("list", "List jobs, newest first.")
    listing.add_argument("--state", choices=STATES, help="only jobs in this state")
    listing.add_argument("--model", help="only jobs of this model")
    listing.add_argument("--limit", type=int, default=20, help="how many (default: 20)")
    listing.add_argument("--json", action="store_true", help="print what the service answers")
    showing = add("show", "Show a job: how far it is, what it said, and what came of it.")
    showing.add_argument("id", help="of the job")
    showing.add_argument("--json", action="store_true", help="print what the service answers")
    starting = add("start", "Export a checkpoint that the service has.")
    starting.add_argument("checkpoint", help="name of an upload (attnserve push), or a path that the service may read")
    starting.add_argument("model", metavar="MODEL[/VERSION]", help="to which it is exported; the next version if none")
    add_export_options(starting)
    following = add("follow", "Follow a job to its end. The exit code is 0 if it succeeds, else 1.")
    following.add_argument("id", help="of the job")
    cancelling = add("cancel", "Cancel a job that is queued or runs.")
    cancelling.add_argument("id", help="of the job")


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how something is exported."""
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="(default: float32)")
    parser.add_argument("--portable", action="store_true", help="no custom ops in the graph")
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="the graph chooses the K likeliest ids or classes itself"
    )
    parser.add_argument("--no-activate", action="store_true", help="publish it, and let the model answer as before")
    parser.add_argument("--follow", action="store_true", help="wait for the end; the exit code is 0 if it succeeds")


def check_no_export_options(parsed: argparse.Namespace) -> None:
    """Refuse options of an export where nothing is exported.

    Raises:
        ValueError: names the first.
    """
    given = {"--precision": parsed.precision != PRECISIONS[0], "--portable": parsed.portable}
    given |= {"--top-k": parsed.top_k is not None}
    given |= {"--no-activate": parsed.no_activate, "--follow": parsed.follow}
    for flag, is_given in given.items():
        if is_given:
            raise ValueError(f"{flag}: expected together with --export, got it alone")


def run(parsed: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code.

    Raises:
        ValueError: an option is wrong.
        RemoteError: the service cannot be reached, or refuses.
    """
    remote = read_remote(parsed)
    return ACTIONS[parsed.action](parsed, remote)


def start(parsed: argparse.Namespace, remote: Remote, checkpoint: str) -> int:
    """Ask for an export, and follow it if that was asked for; returns the exit code.

    Args:
        parsed: has the options of `add_export_options`, and `model`.
        remote: the service.
        checkpoint: name of an upload, or a path.
    """
    model, _, version = parsed.model.partition("/")
    job = start_export(
        remote,
        checkpoint,
        model,
        _read_version(version) if version else None,
        precision=parsed.precision,
        portable=parsed.portable,
        top_k=parsed.top_k,
        activate=not parsed.no_activate,
    )
    print(f"export {job['id']} of {job['model']}/{job['version']}", flush=True)
    return follow(remote, job["id"]) if parsed.follow else 0


def follow(remote: Remote, job_id: str) -> int:
    """Show what a job says, and what came of it; returns the exit code."""
    with show_lines(_print_line, is_shown=sys.stderr.isatty()) as report:
        job = follow_events(remote, job_id, report)
    print_outcome(job)
    if job["state"] != "succeeded":
        return 1
    if job["activate"]:
        place = f"{job['model']}/{job['version']}"
        reason = wait_until_served(remote, job["model"], job["version"])
        if reason is not None:
            print(f"attnserve: {place} is published, and does not answer: {reason}", file=sys.stderr)
            return 1
        print(f"{place} answers")
    return 0


def print_outcome(job: Job) -> None:
    """What came of a job: its parity, or why it failed."""
    place = f"{job['model']}/{job['version']}"
    if job["state"] == "succeeded":
        print(job["table"])
        print(f"onnx ReferenceEvaluator, logits: {job['parity']['reference_logits']:.1e}")
        print(f"{place} is published")
        return
    if job["report"]:
        print(job["report"])
    print(f"attnserve: {describe_end(job)}", file=sys.stderr)


def print_job(job: Job) -> None:
    """A job, for people."""
    print(f"export {job['id']} of {job['checkpoint']} to {job['model']}/{job['version']}, {job['precision']}")
    for name in ("created", "started", "ended", "worker", "key"):
        if job[name]:
            print(f"{name:<10} {job[name]}")
    for line in job["log"]:
        _print_line(line)
    if job["state"] in ("queued", "running"):
        print(f"{job['state']:<10} {job['progress']:.0%}")
    else:
        print_outcome(job)


def _list(parsed: argparse.Namespace, remote: Remote) -> int:
    filters = {"state": parsed.state, "model": parsed.model, "limit": parsed.limit}
    query = urllib.parse.urlencode({name: value for name, value in filters.items() if value is not None})
    document = check_answer(remote.ask("GET", f"{EXPORTS}?{query}"), "exports")
    if parsed.json:
        print(json.dumps(document))
        return 0
    for job in document["exports"]:
        place = f"{job['model']}/{job['version']}"
        print(f"{job['id']}  {job['created']}  {job['state']:<9}  {job['progress']:4.0%}  {place}")
    return 0


def _show(parsed: argparse.Namespace, remote: Remote) -> int:
    document = check_answer(remote.ask("GET", path_of(parsed.id)), "log")
    if parsed.json:
        print(json.dumps(document))
    else:
        print_job(document)
    return 0


def _start(parsed: argparse.Namespace, remote: Remote) -> int:
    return start(parsed, remote, parsed.checkpoint)


def _follow(parsed: argparse.Namespace, remote: Remote) -> int:
    return follow(remote, parsed.id)


def _cancel(parsed: argparse.Namespace, remote: Remote) -> int:
    job = check_answer(remote.ask("DELETE", path_of(parsed.id)), "state")
    print(f"export {job['id']} of {job['model']}/{job['version']} {_say(job['state'])}")
    return 0


def _read_version(text: str) -> int | str:
    # What is no number is for the service to refuse.
    return int(text) if text.isascii() and text.isdecimal() else text


def _say(state: str) -> str:
    return "was cancelled" if state == "cancelled" else state


def _print_line(line: dict[str, Any]) -> None:
    print(f"{line['step']:<10} {line['message']}", flush=True)


ACTIONS: dict[str, Callable[[argparse.Namespace, Remote], int]] = {
    "list": _list,
    "show": _show,
    "start": _start,
    "follow": _follow,
    "cancel": _cancel,
}
