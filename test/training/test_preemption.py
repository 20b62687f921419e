"""A scheduler's signal ends a training command with the code to restart on."""

import multiprocessing
import os
import signal
from multiprocessing.context import SpawnProcess

import joblib
import pytest
from torch.multiprocessing import ProcessExitedException

from espnet_dus.training.preemption import EXIT_CODE, StopSignals, stoppable


class SpawnedTraining(SpawnProcess):
    """A process per GPU, as ESPnet starts it."""

    pid = None  # writable, unlike a process's own

    def __init__(self, pid):
        super().__init__()
        self.pid = pid


def exited(code):
    return ProcessExitedException("it ended", 0, 1, exit_code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_training_ends_the_command(number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        with stoppable():
            os.kill(os.getpid(), number)
    assert stopped.value.code == EXIT_CODE
    assert signal.getsignal(number) == before


def test_idle_workers_of_joblib_do_not_keep_the_command_alive():
    joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(number) for number in range(2))
    assert multiprocessing.active_children()
    with pytest.raises(SystemExit) as stopped, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == EXIT_CODE


def test_a_parent_hands_the_signal_on_and_exits_as_its_processes_do(monkeypatch):
    children = [SpawnedTraining(7), SpawnedTraining(8)]
    sent = []
    with pytest.raises(SystemExit) as stopped, stoppable():
        with monkeypatch.context() as patch:
            patch.setattr(multiprocessing, "active_children", lambda: children)
            kill, own = os.kill, os.getpid()
            patch.setattr(os, "kill", lambda *args: sent.append(args))
            kill(own, signal.SIGUSR1)
        assert sent == [(7, signal.SIGUSR1), (8, signal.SIGUSR1)]
        raise exited(EXIT_CODE)
    assert stopped.value.code == EXIT_CODE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_processes_that_die_of_the_signal_are_restarted(monkeypatch, number):
    """They have no handler before their training begins."""
    with pytest.raises(SystemExit) as stopped, stoppable():
        with monkeypatch.context() as patch:
            children = [SpawnedTraining(7)]
            patch.setattr(multiprocessing, "active_children", lambda: children)
            kill, own = os.kill, os.getpid()
            patch.setattr(os, "kill", lambda *args: None)
            kill(own, number)
        raise exited(-number)
    assert stopped.value.code == EXIT_CODE


def test_a_process_that_dies_of_a_signal_nobody_has_sent_on_is_an_error():
    with pytest.raises(ProcessExitedException), stoppable():
        raise exited(-signal.SIGTERM)


def test_another_end_of_a_process_stays_an_error():
    with pytest.raises(ProcessExitedException):
        with stoppable():
            raise exited(1)


def test_while_it_trains_a_signal_is_only_noted():
    with stoppable():
        stop = StopSignals()
        with stop.noted():
            assert not stop.any_process()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.any_process() and stop.received == "SIGTERM"
        with stop.noted():  # another training in this process
            assert not stop.any_process()
