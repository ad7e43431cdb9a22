"""Report: what a replay of golden found, and whether that is within the certificate."""

from dataclasses import dataclass

from attnserve.certificate import Certificate, Quantisation


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """One line of a replay: the largest absolute differences in one batch."""

    num_sequences: int
    longest: int
    logits: float
    maps: float
    num_changed: int
    """Answers whose likeliest class is another one, though the truth's margin is too large for that."""
    num_wrong_top: int = 0
    """Answers whose top entries, chosen by the graph, are not those of its logits."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a replay found."""

    device: str
    batches: tuple[BatchResult, ...]
    certificate: Certificate
    quantisation: Quantisation | None = None
    """What the manifest says of int8 weights; nothing that replay measures."""

    @property
    def logits(self) -> float:
        """Largest difference in the logits."""
        return max(batch.logits for batch in self.batches)

    @property
    def maps(self) -> float:
        """Largest difference in the weights."""
        return max(batch.maps for batch in self.batches)

    @property
    def num_changed(self) -> int:
        """Answers whose likeliest class changed; see `BatchResult`."""
        return sum(batch.num_changed for batch in self.batches)

    @property
    def num_wrong_top(self) -> int:
        """Answers whose top entries are wrong; see `BatchResult`."""
        return sum(batch.num_wrong_top for batch in self.batches)

    @property
    def passed(self) -> bool:
        """Whether all is within the certificate; NaN is not."""
        certificate = self.certificate
        within = self.logits <= certificate.logits.allowed and self.maps <= certificate.maps.allowed
        return within and not self.num_changed and not self.num_wrong_top

    def table(self) -> str:
        """The report as text, for people."""
        head = f"{'sequences':>9}  {'longest':>7}  {'logits':>8}  {'maps':>8}"
        lines = [
            f"{batch.num_sequences:>9}  {batch.longest:>7}  {batch.logits:>8.1e}  {batch.maps:>8.1e}"
            for batch in self.batches
        ]
        certificate = self.certificate
        allowed = f"{'allowed':>18}  {certificate.logits.allowed:>8.1e}  {certificate.maps.allowed:>8.1e}"
        verdict = "within the certificate" if self.passed else "OUTSIDE THE CERTIFICATE"
        if self.num_changed:
            verdict += f": {self.num_changed} answers name another class though the margin is large"
        if self.num_wrong_top:
            verdict += f": of {self.num_wrong_top} answers the top entries are not those of their logits"
        same, costs = ("", []) if self.quantisation is None else (" of the same weights", [self.quantisation.table()])
        title = f"largest differences of {certificate.precision} from PyTorch float64{same}, on {self.device}:"
        return "\n".join([title, head, *lines, allowed, verdict, *costs])
