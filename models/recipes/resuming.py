"""Training that goes on where a killed process left it: weights, optimiser and history in one safetensors file.

The data is drawn anew from its seed and what was trained on already is skipped, so a run that was stopped and went on
is the run that was not, bit for bit.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attnserve.models.recipes.history import History

STATE_FILE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Where a run keeps its state, and how often."""

    path: Path
    every: int
    """Steps from one state to the next."""
    command: str
    """The run: no other one may go on from its state."""

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> None:
        """Write the state after so many steps; a process that is killed meanwhile leaves the one before."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        metadata = {"command": self.command, "history": json.dumps(dataclasses.asdict(history))}
        unfinished = self.path.with_suffix(".tmp")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata)
        os.replace(unfinished, self.path)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> History:
        """Put model and optimiser into the state that was saved, if one was; returns the history so far.

        Raises:
            ValueError: the state is not one of this run.
        """
        if not self.path.exists():
            return History()
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"out: {self.path} is no state of a training: {error}") from None
        if metadata.get("command") != self.command:
            raise ValueError(
                f"out: {self.path} is the state of another run: {metadata.get('command')}; remove it to begin anew"
            )
        weights: dict[str, Tensor] = {}
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = tensor
            else:
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = tensor
        model.load_state_dict(weights)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        history = json.loads(metadata["history"])
        return History(
            losses=history["losses"],
            rates=history["rates"],
            scores={int(step): score for step, score in history["scores"].items()},
        )

    def forget(self) -> None:
        """Remove the state: the run is done."""
        self.path.unlink(missing_ok=True)
