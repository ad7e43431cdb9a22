"""soak is no part of the package, and the root is not on the path: it is imported from where it is."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if "soak" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "soak", ROOT / "soak" / "__init__.py", submodule_search_locations=[str(ROOT / "soak")]
    )
    sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["soak"])
