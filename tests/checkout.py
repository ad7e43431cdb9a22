"""soak and benchmarks are no part of the package, and the root is not on the path: both are found where they are."""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]

for name in ("soak", "benchmarks"):
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(ROOT / name)]
        sys.modules[name] = package
