"""The table of variants in markdown: `attnserve variants` prints it, a test holds docs/attention.md to it."""

from attnserve.models.attention import VARIANTS, Variant

COLUMNS = ("variant", "weights", "ONNX op", "weights graphs", "source")


def variants_table() -> str:
    """One row per variant, columns padded so that it reads well in a terminal too; ends with a newline."""
    rows = [list(COLUMNS), *(_row(variant) for variant in VARIANTS.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines) + "\n"


def _row(variant: Variant) -> list[str]:
    ops = [variant.metric_op, variant.op] if variant.metric_op else [variant.op]
    # Markdown splits cells at bars, in code as well; |v| would end one.
    formula = variant.formula.replace("|", "\\|")
    return [
        f"`{variant.name}`",
        f"`{formula}`",
        ", ".join(f"`{op}`" for op in ops),
        f"`{variant.weighting}`",
        variant.source,
    ]
