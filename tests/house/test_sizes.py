"""A source file that passes 300 lines is asking to be two."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 300
SOURCES = [
    path
    for folder in ("attnserve", "models", "export", "service", "worker", "benchmarks", "examples", "soak")
    for pattern in ("*.py", "*.js", "*.css", "*.html")
    for path in (ROOT / folder).rglob(pattern)
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_file_is_one_thing(path):
    num_lines = len(path.read_text("utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: which two things is it? Split it, do not squeeze it."
