"""What is looked at, and how much of it."""

from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.bundles import COMMITTED, LARGE, PRECISIONS, REFERENCE, Bundle


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run; travels to the process of every part as JSON."""

    device: str
    """"cuda" or "cpu"."""
    folder: str
    """Where bundles are."""
    proven: tuple[str, ...]
    """Models that were trained."""
    precisions: tuple[str, ...]
    """In which they are proven."""
    timed: tuple[str, ...]
    """Models that are timed too, a checkpoint of which is in the folder."""
    timed_precisions: tuple[str, ...]
    num_requests: int = 10_000
    """Of the part `memory`."""
    num_sizes: int = 12
    """Of batches whose graphs are recorded, of each bundle."""
    num_replays: int = 8
    """Of each of them."""
    num_sequences: int = 1024
    """Of the part `engine`, in each round."""
    num_rounds: int = 3
    tuning_seconds: float = 3.0
    """For what batches cost."""
    num_clients: int = 64
    """Who ask at once."""
    load_seconds: float = 8.0
    """Of each server's load that is measured."""
    warmup_seconds: float = 3.0
    compiles: bool = True
    """Whether there is a server of a compiled model too."""
    num_graphs: int = 64
    """CUDA graphs that a model keeps."""
    shortest: int = 8
    longest: int = 512
    """Steps of what is timed, uniform."""

    def draw_lengths(self, count: int, max_length: int, generator: np.random.Generator) -> list[int]:
        """Steps of so many sequences of a model that takes at most `max_length`."""
        low, high = self.range_of(max_length)
        return generator.integers(low, high + 1, count).tolist()

    def range_of(self, max_length: int) -> tuple[int, int]:
        """Shortest and longest sequence of a model."""
        longest = min(self.longest, max_length)
        return min(self.shortest, longest), longest

    def bundles(self) -> list[Bundle]:
        """All: those that are proven in every precision, and those that are timed."""
        proven = [
            Bundle(root=self.folder, model=model, precision=precision)
            for model in self.proven
            for precision in self.precisions
        ]
        return list(dict.fromkeys([*proven, *self.timed_bundles()]))

    def timed_bundles(self) -> list[Bundle]:
        """Those that are timed."""
        return [
            Bundle(root=self.folder, model=model, precision=precision)
            for precision in self.timed_precisions
            for model in self.timed
        ]


def plan_for(device: str, folder: str) -> Plan:
    """All of it on a GPU; on the CPU as much as shows that the programs run."""
    if device == "cuda":
        return Plan(
            device=device,
            folder=folder,
            proven=COMMITTED,
            precisions=PRECISIONS,
            timed=(REFERENCE, LARGE),
            timed_precisions=("float32", "float16"),
        )
    return Plan(
        device=device,
        folder=folder,
        proven=("nt-expressive",),
        precisions=("float32", "float16"),
        timed=(REFERENCE,),
        timed_precisions=("float32",),
        num_requests=200,
        num_sizes=3,
        num_replays=2,
        num_sequences=16,
        num_clients=4,
        load_seconds=4.0,
        warmup_seconds=1.0,
    )
