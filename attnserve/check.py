"""`attnserve check`: a bundle's golden replayed on this machine, and how far its answers are from the truth."""

import argparse
import json
import math

from attnserve.golden import read_golden, replay
from attnserve.kernels import OFF, require_kernels
from attnserve.records import to_json
from attnserve.runtime import Runtime
from attnserve.sessions import DEVICES
from attnserve.settling import settle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve check`."""
    parser.add_argument("bundle", help="bundle folder, REPOSITORY/model/version")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to run (default: cpu)")
    parser.add_argument(
        "--kernels",
        metavar="KERNELS",
        default=OFF,
        help="replay with native kernels: auto, or the path of their library (default: off, the file by itself)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Replay and print; 1 if the bundle is outside its certificate here.

    Raises:
        BundleError: damaged.
        DeviceError: the device asked for cannot be used.
        ValueError: there is no such library of kernels.
    """
    runtime = Runtime(parsed.bundle, device=parsed.device, op_library=require_kernels(parsed.kernels))
    golden = read_golden(parsed.bundle)
    report = replay(runtime, golden)
    # It changes nothing in the bundle's worth: where they fail, the CPU computes them.
    reason = None if runtime.device == "cpu" else settle(runtime, golden)
    if parsed.json:
        # JSON has no infinity: a difference without a size, such as NaN, is null.
        found = {"logits": report.logits, "maps": report.maps}
        finite = {name: value if math.isfinite(value) else None for name, value in found.items()}
        allowed = {"logits": report.certificate.logits.allowed, "maps": report.certificate.maps.allowed}
        rest = {"device": report.device, "passed": report.passed, "allowed": allowed, "table": report.table()}
        rest |= {
            "changed": report.num_changed,
            "wrong_top": report.num_wrong_top,
            "quantisation": to_json(report.quantisation),
        }
        rest["kernels"] = None if runtime.op_library is None else str(runtime.op_library)
        rest["weights_there"] = None if runtime.device == "cpu" else {"passed": reason is None, "reason": reason}
        print(json.dumps({**finite, **rest}))
    else:
        print(report.table())
        if runtime.device != "cpu":
            print(f"attention weights computed on {runtime.device}: {reason or 'within the certificate'}")
        if runtime.op_library is not None:
            print(f"attention computed by {runtime.op_library}")
    return 0 if report.passed else 1
