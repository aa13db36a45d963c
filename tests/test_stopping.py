"""Signals become a flag; a second Ctrl-C is one too many."""

import signal

import pytest
import torch

from safetune.stopping import GracefulStop


class Processes:
    """Stands in for an Accelerator of two processes, of which the other one saw `theirs`."""

    num_processes = 2
    device = "cpu"

    def __init__(self, theirs: int) -> None:
        self.theirs = theirs

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        return torch.cat([mine, torch.tensor([self.theirs])])


class One:
    num_processes = 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_noted_and_does_not_interrupt(number: signal.Signals, status: int) -> None:
    with GracefulStop() as stop:
        assert not stop.agreed(One()) and stop.exit_status == 0
        signal.raise_signal(number)
        assert stop.agreed(One())
    assert stop.requested and stop.exit_status == status


def test_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with GracefulStop():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_sigint_interrupts_a_second_sigterm_does_not() -> None:
    with pytest.raises(KeyboardInterrupt), GracefulStop():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("mine", "theirs", "agreed"), [(0, 0, False), (0, 15, True), (15, 0, True), (2, 15, True)]
)
def test_one_asked_process_stops_all(mine: int, theirs: int, agreed: bool) -> None:
    stop = GracefulStop()
    stop.signal = mine
    assert stop.agreed(Processes(theirs)) is agreed
    assert stop.exit_status == (128 + max(mine, theirs) if agreed else 0)
