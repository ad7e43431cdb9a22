"""A part as `test_running.py` wants it: `python -m tests.benchmarks.gpu.stand_in WHAT PLAN FILE`."""

import json
import signal
import sys
from pathlib import Path

what, plan_file, file = sys.argv[1:]
plan = json.loads(Path(plan_file).read_text("utf-8"))
line = json.dumps({"cells": {"device": plan["device"]}})
if what == "wait":
    signal.pause()
# As a process that is killed leaves it.
Path(file).write_text(f"{line}\n" + ('{"cells"' if what == "crash" else ""), "utf-8")
sys.exit(7 if what == "crash" else 0)
