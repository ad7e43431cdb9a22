import json
from pathlib import Path

from attnserve.models.studies.zoo import write_zoo


def test_a_model_is_a_row_and_its_command(tmp_path: Path) -> None:
    card = {
        "recipe": "digits",
        "description": "elliptical attention trained to read",
        "variant": "dot_product",
        "parameters": 12345,
        "test_accuracy": 0.98765,
        "num_test_images": 359,
        "command": "attnserve train digits --seed 3",
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "card.json").write_text(json.dumps(card))
    (tmp_path / "no model").mkdir()
    write_zoo(tmp_path / "zoo.md", tmp_path)

    page = (tmp_path / "zoo.md").read_text("utf-8")
    assert "| [mine](#mine) | digits | dot-product | 12,345     | 98.8% of 359 test images |" in page
    assert "\n## mine\n\nElliptical attention trained to read.\n" in page
    assert "```bash\nattnserve train digits --seed 3\n```" in page
