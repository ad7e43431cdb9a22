"""`attnserve export` and `attnserve export-hf`: their options, and what they print."""

import argparse
from pathlib import Path

from attnserve.certificate import PRECISIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve export`."""
    parser.add_argument("checkpoint", help="folder with config.json and model.safetensors")
    _add_shared(parser)
    parser.add_argument(
        "--twin",
        metavar="VARIANT",
        help="export REPOSITORY/model-VARIANT/version beside it: the same weights with that attention, such as "
        "dot_product, to compare with",
    )


def add_hugging_face_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve export-hf`."""
    parser.add_argument("folder", help="of a Hugging Face model: config.json and safetensors")
    _add_shared(parser)
    parser.add_argument(
        "--attention",
        metavar="VARIANT",
        help="dot_product, expressive or elliptical (default: as config.attnserve says, else dot_product)",
    )
    parser.add_argument(
        "--untrained", action="store_true", help="let --attention be another than the model was trained with"
    )
    parser.add_argument(
        "--task",
        default="auto",
        help="by the class that the config names, or the one that it should be (default: auto)",
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", help="REPOSITORY/model/version; must not exist")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of weights and activations; bfloat16 needs a CUDA device to run on; int8 is of weights alone, with "
        "float32 activations (default: float32)",
    )
    parser.add_argument(
        "--portable",
        action="store_true",
        help="inline the function bodies: no custom domain in the file, and no kernel can replace them",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="have the graph choose the K likeliest ids or classes itself: predictions of up to K need no logits",
    )


def run(parsed: argparse.Namespace) -> int:
    """Export a checkpoint, and its twin if one is asked for."""
    from attnserve.export import export_checkpoint, place_twins

    for place, twin in place_twins(Path(parsed.destination), parsed.twin).items():
        verified = export_checkpoint(
            parsed.checkpoint,
            place,
            precision=parsed.precision,
            portable=parsed.portable,
            top_k=parsed.top_k,
            twin=twin,
            report=_print_step,
        )
        _print_proof(verified.table, verified.reference_logits)
    return 0


def run_hugging_face(parsed: argparse.Namespace) -> int:
    """Export a Hugging Face model."""
    from attnserve.export.huggingface import export_hugging_face

    verified = export_hugging_face(
        parsed.folder,
        parsed.destination,
        attention=parsed.attention,
        task=parsed.task,
        untrained=parsed.untrained,
        precision=parsed.precision,
        portable=parsed.portable,
        top_k=parsed.top_k,
        report=_print_step,
    )
    _print_proof(verified.table, verified.reference_logits)
    return 0


def _print_proof(table: str, reference_logits: float) -> None:
    print(table)
    print(f"onnx ReferenceEvaluator, logits: {reference_logits:.1e}")


def _print_step(step: str, message: str) -> None:
    print(f"{step:<10} {message}", flush=True)
