"""A part in a process of its own: `python -m benchmarks.gpu.child PART PLAN FILE`.

An error of CUDA stays with its process, and a call into a driver that hangs can be ended from outside alone. What is
found is in FILE as soon as it is: a line of JSON each.
"""

import json
import logging
import sys
from pathlib import Path

from attnserve.records import from_json, to_json
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.plan import Plan


def main() -> int:
    name, plan_file, file = sys.argv[1:]
    plan = from_json(Plan, json.loads(Path(plan_file).read_text("utf-8")))
    # attnserve says in its log why it does without graphs.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with Path(file).open("a", encoding="utf-8") as out:
        for finding in PARTS[name].run(plan):
            print(json.dumps(to_json(finding)), file=out, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
