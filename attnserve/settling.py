"""Settling: captures may stay on a device where golden's weights are right that are computed of them."""

from attnserve.bound import DeviceFailure
from attnserve.bundle import BundleError
from attnserve.certificate import Certificate
from attnserve.golden import Golden, replay
from attnserve.runtime import Runtime


def settle(runtime: Runtime, golden: Golden, certificate: Certificate | None = None) -> str | None:
    """Have captures stay on the device, if golden bears it.

    Args:
        runtime: on a device.
        golden: of its bundle.
        certificate: judges the differences; None is the bundle's.

    Returns:
        Why weights cannot be computed there, and captures do not stay; None if they do.
    """
    try:
        runtime.settle()
        report = replay(runtime, golden, certificate=certificate, stays=True)
        reason = None if report.passed else report.table()
    except (BundleError, DeviceFailure) as error:
        reason = str(error.__cause__ or error)
    if reason is not None:
        runtime.residence = None
    return reason
