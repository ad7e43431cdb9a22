"""The mint: `attnserve key`, which makes a key, shows it once, and keeps only its hash."""

import argparse
import os
import sys
from pathlib import Path

from attnserve.service.document import read_document
from attnserve.service.keys import SCOPES, check_name, make_secret, parse_keys, parse_scopes, write_entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve key`."""
    parser.add_argument("name", help="who will use it; stands in logs, and is taken once per file")
    parser.add_argument(
        "--scopes",
        default="",
        metavar="SCOPE,...",
        help=f"what it opens, of {', '.join(SCOPES)} (default: none, which is enough for metrics and descriptions)",
    )
    parser.add_argument("--file", type=Path, help="keys file to add its hash to; made, for you alone, if there is none")


def run(parsed: argparse.Namespace) -> int:
    """Print the key to stdout, and the line for the keys file, which holds its hash, to stderr or to the file.

    Raises:
        ValueError: a wrong name or scope, or a file that cannot be added to; nothing is printed or written then.
    """
    name = check_name(parsed.name, "NAME")
    scopes = sorted(parse_scopes([scope for scope in parsed.scopes.split(",") if scope], "--scopes"), key=SCOPES.index)
    secret = make_secret()
    line = write_entry(name, secret, scopes)
    if parsed.file is None:
        print(line, file=sys.stderr)
    else:
        add_line(parsed.file, line)
        print(f"attnserve: the hash of {name} is in {parsed.file}; the key is shown only here", file=sys.stderr)
    print(secret)
    return 0


def add_line(path: Path, line: str) -> None:
    """Add a line to a keys file, in one write, so that a service never reads half of it.

    Raises:
        ValueError: the file cannot be read or written, is wrong, is JSON, or has that name already.
    """
    try:
        before = path.read_bytes().decode() if path.exists() else ""
        if before.lstrip().startswith("["):
            raise ValueError(f"--file: {path}: expected YAML with a line per key, got JSON; add an entry to it by hand")
        after = f"{before}\n{line}\n" if before and not before.endswith("\n") else f"{before}{line}\n"
        _check(path, before, after)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "ab", buffering=0) as file:
            file.write(after[len(before) :].encode())
    except UnicodeDecodeError:
        raise ValueError(f"--file: {path}: expected UTF-8, got something else") from None
    except OSError as error:
        raise ValueError(f"--file: expected a file that can be written, got {path}: {error.strerror}") from None


def _check(path: Path, before: str, after: str) -> None:
    try:
        # First without the new line, which is not to blame for what is wrong already.
        if read_document(before) is not None:
            parse_keys(before)
        parse_keys(after)
    except ValueError as error:
        raise ValueError(f"--file: {path}: {error}") from None
