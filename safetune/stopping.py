"""Leaving a run early and in order: signals become a flag that all processes see at the same step."""

import signal
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator


class GracefulStop:
    """Within the block SIGTERM and SIGINT ask for an end instead of ending the process.

    A second SIGINT (Ctrl-C) ends it at once. Schedulers such as SLURM send SIGTERM before they kill.
    """

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that came, 0 for none."""

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._former = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to end; every process asks once per step and gets the same answer.

        A signal reaches processes at different moments: who left alone would leave the others waiting.
        """
        if accelerator.num_processes > 1:
            asked = torch.tensor([int(self.signal)], device=accelerator.device)
            self.signal = int(accelerator.gather(asked).max())
        return self.requested

    @property
    def requested(self) -> bool:
        return self.signal != 0

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that the signal ended: 143 (SIGTERM), 130 (SIGINT) or 0."""
        return 128 + self.signal if self.signal else 0
