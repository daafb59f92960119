"""Position of a training run: epoch, step within it, and steps in all."""

from dataclasses import dataclass


@dataclass
class Position:
    """How far a run has trained.

    Attributes:
        epoch: int, number of whole epochs; the current epoch's index.
        step: int, number of steps (batches) of the current epoch.
        total: int, number of steps since the run started.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0

    def begin_epoch(self, epoch: int):
        """Move to the start of an epoch."""
        self.epoch, self.step = epoch, 0

    def advance(self, steps: int):
        """Count steps of the current epoch."""
        self.step, self.total = self.step + steps, self.total + steps

    @property
    def name(self) -> str:
        """Name of a checkpoint at this position."""
        return f"step-{self.total:08d}" + ("" if self.step else f"-epoch-{self.epoch:04d}")
