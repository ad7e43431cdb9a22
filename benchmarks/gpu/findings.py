"""What a part finds: rows of its table, each with a verdict of its own, and how the part ended."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A row."""

    cells: Mapping[str, str]
    """By column, in the order shown."""
    broken: tuple[str, ...] = ()
    """Laws that were broken, in words."""
    unjudged: str | None = None
    """Why no law is held against it; what was broken all the same is."""

    @property
    def verdict(self) -> str:
        if self.broken:
            return f"**failed**: {'; '.join(self.broken)}"
        return "passed" if self.unjudged is None else f"not judged: {self.unjudged}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of a part."""

    findings: tuple[Finding, ...]
    seconds: float
    cut: str | None = None
    """Why it did not come to its end."""

    @property
    def failed(self) -> bool:
        """Whether a law was broken, or not everything was looked at: what was not is not proven."""
        return self.cut is not None or not self.findings or any(finding.broken for finding in self.findings)

    @property
    def verdict(self) -> str:
        if any(finding.broken for finding in self.findings):
            return "**failed**"
        if self.cut is not None:
            return "**not whole**"
        if not self.findings:
            return "**nothing was found**"
        return "passed" if any(finding.unjudged is None for finding in self.findings) else "not judged"
