"""Trying out a tokenizer in a process of its own: its library panics, aborts and hangs on files that say so."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from attnserve.models.checkpoint import CheckpointError

# Of all texts together. A tokenizer in use reads megabytes in a second; an expression that backtracks never ends.
PATIENCE_S = 60
# What tokenizers have failed on: nothing, blanks, control characters, bytes beyond ASCII in all lengths, letters that
# join or combine, right to left, what is no character, special tokens in the text, long words, long texts.
TEXTS = (
    "",
    " ",
    "\t \r\n\n  \u00a0\u2003\ufeff",
    "\x00\x01\x1b[31m\x7f\x85",
    "The quick brown fox, 12,345.67 times; isn't it? http://a.b/c?d=e&f#g",
    "\u00e9 e\u0301 \u1e9b\u0323 \u0130\u0131\u00df\ufb03 \u0e01\u0e33\u0e01\u0e33",
    "\u4e2d\u6587\u5206\u8bcd \u65e5\u672c\u8a9e\u306e\u6587 \ud55c\uad6d\uc5b4",
    "\u0645\u0631\u062d\u0628\u0627 \u202e\u05e9\u05dc\u05d5\u05dd\u202c",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1ee\U0001f1f8 \U0001f44d\U0001f3fd \U00010348 \U0010ffff\uffff",
    "<unk><s></s><pad><mask>[CLS][SEP][PAD][MASK]<|endoftext|><0x0A>\u2581\u0120##",
    "a" * 10_000,
    " " * 10_000,
    "ab1 \u00e9\u4e2d" * 2_000,
)

# The process imports from where this one does: PYTHONPATH may be missing there, or say otherwise.
TRY = """
import json, sys
path, parent, *sys.path = sys.argv[1:]
from attnserve.lifeline import die_with
die_with(int(parent))
from attnserve.text import TextError, TextReader, TokenizerPanic
reason = text = None
try:
    reader = TextReader(path)
    for text in json.load(sys.stdin):
        try:
            ids = reader.encode(text).ids.tolist()
            reader.decode(ids)
            for index in ids[:100]:
                reader.describe(index)
        except TokenizerPanic:
            raise
        except TextError:
            pass  # It knows what it cannot read, and so will whoever asks.
except TokenizerPanic as error:
    reason = f"{error}: its library panics" if text is None else f"its library panics on {text[:20]!r}"
except TextError as error:
    reason = str(error)
print(json.dumps(reason))
"""


def check_tokenizer(path: Path) -> None:
    """Read a `tokenizer.json` and encode and decode texts of all kinds with it, elsewhere.

    Raises:
        CheckpointError: it is malformed, takes longer than `PATIENCE_S`, or its library panics or crashes.
    """
    # -P: not from the current folder, whatever lies there.
    command = [sys.executable, "-P", "-c", TRY, str(path), str(os.getpid()), *sys.path]
    try:
        process = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{path}: expected a tokenizer that reads {sum(map(len, TEXTS))} characters within {PATIENCE_S} s, "
            "got one that takes longer"
        ) from None
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise CheckpointError(f"{path}: expected a tokenizer, got one that its library crashes on with {name}")
    try:
        reason = json.loads(process.stdout)
    except json.JSONDecodeError:
        raise CheckpointError(
            f"{path}: cannot be tried out: the process ended with {process.returncode}: {process.stderr[-1000:]}"
        ) from None
    if reason is not None:
        raise CheckpointError(reason if reason.startswith(str(path)) else f"{path}: {reason}")
