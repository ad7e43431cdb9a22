"""The command line. Every command imports its own package when called, so `serve` never touches torch."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import attnserve
from attnserve.extras import EXTRA_OF


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 asked for wrongly."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((argument for argument in given if not argument.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="attnserve", description=attnserve.__doc__)
    parser.add_argument("--version", action="version", version=f"attnserve {attnserve.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    try:
        for name, command in COMMANDS.items():
            subparser = subparsers.add_parser(name, help=command.summary, description=command.summary)
            # Only the command asked for adds its options: they come from packages that take seconds to import.
            if name == chosen:
                command.add_arguments(subparser)
        if chosen in COMMANDS:
            given = COMMANDS[chosen].spell_out(given)
        parsed = parser.parse_args(given)
        return COMMANDS[parsed.command].run(parsed)
    except KeyboardInterrupt:
        # What was begun has cleaned up behind itself; a traceback would only hide that. 130 is the shell's number.
        print(f"attnserve: {chosen} was interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        extra = COMMANDS[str(chosen)].extra or extra
        return _fail(f"`attnserve {chosen}` needs {error.name}: pip install 'attnserve[{extra}]'")
    except (ValueError, RuntimeError, OSError) as error:
        # Ours say what was expected and what came, which a traceback would only hide; others are bugs.
        if not type(error).__module__.startswith("attnserve.") and type(error) is not ValueError:
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"attnserve: {message}", file=sys.stderr)
    return 1


def _add_export(parser: argparse.ArgumentParser) -> None:
    from attnserve.exporting import add_arguments

    add_arguments(parser)


def _export(parsed: argparse.Namespace) -> int:
    from attnserve.exporting import run

    return run(parsed)


def _add_export_hf(parser: argparse.ArgumentParser) -> None:
    from attnserve.exporting import add_hugging_face_arguments

    add_hugging_face_arguments(parser)


def _export_hf(parsed: argparse.Namespace) -> int:
    from attnserve.exporting import run_hugging_face

    return run_hugging_face(parsed)


def _add_check(parser: argparse.ArgumentParser) -> None:
    from attnserve.check import add_arguments

    add_arguments(parser)


def _check(parsed: argparse.Namespace) -> int:
    from attnserve.check import run

    return run(parsed)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    from attnserve.doctor import add_arguments

    add_arguments(parser)


def _doctor(parsed: argparse.Namespace) -> int:
    from attnserve.doctor import run

    return run(parsed)


def _variants(_: argparse.Namespace) -> int:
    from attnserve.models.attention.table import variants_table

    print(variants_table(), end="")
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    from attnserve.models.recipes.command import add_arguments

    add_arguments(parser)


def _train(parsed: argparse.Namespace) -> int:
    from attnserve.models.recipes.command import run

    return run(parsed)


def _add_study(parser: argparse.ArgumentParser) -> None:
    from attnserve.models.studies.command import add_arguments

    add_arguments(parser)


def _study(parsed: argparse.Namespace) -> int:
    from attnserve.models.studies.command import run

    return run(parsed)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    # Before numpy is imported, whose products would take every core there is, beside those of --num-threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from attnserve.service.configuration import add_arguments

    parser.add_argument("repository", help="folder of bundles: REPOSITORY/model/version")
    add_arguments(parser)


def _spell_serve(arguments: list[str]) -> list[str]:
    from attnserve.service.configuration import spell_out

    return spell_out(arguments)


def _serve(parsed: argparse.Namespace) -> int:
    from attnserve.service.server import serve

    return serve(parsed)


def _add_worker(parser: argparse.ArgumentParser) -> None:
    from attnserve.worker.command import add_arguments

    add_arguments(parser)


def _worker(parsed: argparse.Namespace) -> int:
    from attnserve.worker.command import run

    return run(parsed)


def _add_push(parser: argparse.ArgumentParser) -> None:
    from attnserve.push import add_arguments

    add_arguments(parser)


def _push(parsed: argparse.Namespace) -> int:
    from attnserve.push import run

    return run(parsed)


def _add_exports(parser: argparse.ArgumentParser) -> None:
    from attnserve.exports import add_arguments

    add_arguments(parser)


def _exports(parsed: argparse.Namespace) -> int:
    from attnserve.exports import run

    return run(parsed)


def _add_key(parser: argparse.ArgumentParser) -> None:
    from attnserve.service.mint import add_arguments

    add_arguments(parser)


def _key(parsed: argparse.Namespace) -> int:
    from attnserve.service.mint import run

    return run(parsed)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from attnserve.service.bench.command import add_arguments

    add_arguments(parser)


def _bench(parsed: argparse.Namespace) -> int:
    from attnserve.service.bench.command import run

    return run(parsed)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A word after `attnserve`."""

    summary: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    extra: str | None = None
    """Brings all that this command may lack, of which other extras have some too."""
    spell_out: Callable[[list[str]], list[str]] = list
    """What was given, with what argparse needs and people leave out."""


COMMANDS = {
    "train": Command(summary="Train a model with a recipe.", run=_train, add_arguments=_add_train),
    "study": Command(
        summary="Train what the tables of docs/results.md compare, and write that page.",
        run=_study,
        add_arguments=_add_study,
    ),
    "export": Command(
        summary="Turn a checkpoint into a bundle, proven equal to PyTorch.", run=_export, add_arguments=_add_export
    ),
    "export-hf": Command(
        summary="Turn a Hugging Face model into a bundle, proven equal to transformers.",
        run=_export_hf,
        add_arguments=_add_export_hf,
        extra="huggingface",
    ),
    "check": Command(
        summary="Replay a bundle's golden on this machine; needs no torch.", run=_check, add_arguments=_add_check
    ),
    "serve": Command(
        summary="Serve every model of a repository over HTTP.",
        run=_serve,
        add_arguments=_add_serve,
        spell_out=_spell_serve,
    ),
    "worker": Command(
        summary="Run export jobs that services have taken.", run=_worker, add_arguments=_add_worker, extra="export"
    ),
    "push": Command(
        summary="Send a checkpoint to a service, as far as it is not there already.", run=_push, add_arguments=_add_push
    ),
    "exports": Command(
        summary="Have a service export checkpoints: start, list, show, follow, cancel.",
        run=_exports,
        add_arguments=_add_exports,
    ),
    "key": Command(
        summary="Make an API key for the service, and its entry in a keys file.", run=_key, add_arguments=_add_key
    ),
    "bench": Command(
        summary="Measure an engine against bare ONNX Runtime, or a running service under load.",
        run=_bench,
        add_arguments=_add_bench,
        extra="bench",
    ),
    "doctor": Command(
        summary="Say what this machine can serve with, what is wrong, and what to install.",
        run=_doctor,
        add_arguments=_add_doctor,
    ),
    "variants": Command(summary="List the attention variants.", run=_variants),
}
