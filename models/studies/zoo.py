"""The page of the committed checkpoints, from their cards."""

import json
from pathlib import Path
from typing import Any

from attnserve.checkpoint_files import CARD_FILE
from attnserve.models.recipes.summary import markdown_table

INTRODUCTION = """# Model zoo

<!-- Written by `attnserve study page` from the cards in checkpoints/; a test compares. -->

Small trained models that come with the project, one or more per task: what `make serve` serves. Each folder has a
`card.json` with all that is below and more: its data, its versions, how it was scored, and how far rounding moves it.
`checkpoints/train.sh` trains them again.

"""


def write_zoo(page: Path, checkpoints: Path) -> None:
    """Write the page: a table of all checkpoints in the folder, and for each what its card says."""
    cards = {folder.parent.name: json.loads(folder.read_text("utf-8")) for folder in _cards_in(checkpoints)}
    rows = [
        [
            f"[{name}](#{name})",
            card["recipe"],
            card["variant"].replace("_", "-"),
            f"{card['parameters']:,}",
            score_of(card),
        ]
        for name, card in cards.items()
    ]
    parts = [INTRODUCTION, markdown_table(["model", "recipe", "attention", "parameters", "score"], rows)]
    for name, card in cards.items():
        description = card["description"][:1].upper() + card["description"][1:]
        parts.append(f"\n## {name}\n\n{description}.\n\n```bash\n{card['command']}\n```\n")
    page.write_text("".join(parts), "utf-8")


def _cards_in(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob(f"*/{CARD_FILE}"))


def score_of(card: dict[str, Any]) -> str:
    """What the recipe of a card measures models by, in few words."""
    if card["recipe"] == "nt":
        return f"{card['free_running_sequences_exact']:.1%} of free runs exact to {card['lengths'][1]} tokens"
    if card["recipe"] == "digits":
        return f"{card['test_accuracy']:.1%} of {card['num_test_images']} test images"
    return f"{card['bits_per_byte']:.3f} bits per byte, unigram {card['unigram_bits_per_byte']:.3f}"
