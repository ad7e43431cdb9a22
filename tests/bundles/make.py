"""Make `tests/bundles/v<format version>` with the present code: `.venv/bin/python tests/bundles/make.py`.

Run once per format version, on the day it is released, and never again: later releases have to read what this one
wrote. The name of the folder is the format version, so it cannot be the destination of an export itself.
"""

import shutil
import tempfile
from pathlib import Path

from attnserve.bundle import FORMAT_VERSION
from attnserve.export import export_checkpoint
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.checkpoint import save_checkpoint

CONFIG = TransformerConfig(
    vocabulary_size=5,
    max_length=12,
    width=8,
    num_heads=2,
    mlp_ratio=2.0,
    positions="rotary",
    labels=("a", "b", "c", "d", "e"),
    attention=(
        AttentionConfig(),
        AttentionConfig(variant="expressive", epsilon=0.001, window=7),
        AttentionConfig(variant="elliptical", scope="prefix", scaling="max", softcap=20.0),
    ),
)


def main() -> None:
    place = Path(__file__).parent / f"v{FORMAT_VERSION}"
    if place.exists():
        raise SystemExit(f"{place} exists: a released bundle is never made again")
    with tempfile.TemporaryDirectory() as scratch:
        save_checkpoint(Transformer(CONFIG, seed=1), Path(scratch) / "checkpoint", {"purpose": "format version"})
        made = Path(scratch) / "tiny" / "1"
        export_checkpoint(Path(scratch) / "checkpoint", made, report=print)
        shutil.copytree(made, place)


if __name__ == "__main__":
    main()
