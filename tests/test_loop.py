import io
import os
import signal
import threading

import numpy as np
import pytest
from rich.console import Console

from ftnas_jax.loop import Progress, Terminator, attentive


@pytest.fixture(autouse=True)
def handlers_of_a_foreground_process():
    """Whatever this process inherited: started in the background, it would ignore Ctrl-C."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    inherited = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in inherited.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_asks_once_and_then_acts_as_before(number, code):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Terminator() as terminator:
        assert not terminator.requested
        assert terminator.exit_code == 0
        os.kill(os.getpid(), number)
        assert terminator.requested
        assert terminator.exit_code == code
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("stderr", [None, "closed pipe"])
def test_a_signal_is_answered_while_compiled_code_runs(capsys, monkeypatch, stderr):
    if stderr:
        monkeypatch.setattr("sys.stderr", ClosedPipe())
    answered = threading.Event()

    def compiled_code():
        os.kill(os.getpid(), signal.SIGTERM)
        return answered.wait(60)

    class Answering(Terminator):
        def _handle(self, number, frame):
            super()._handle(number, frame)
            answered.set()

    with Answering() as terminator:
        assert attentive(compiled_code)
    assert terminator.exit_code == 143
    line = "" if stderr else "stopping after this call, saving; a second signal stops at once\n"
    assert capsys.readouterr().err == line


class ClosedPipe(io.StringIO):
    """Where whoever listened is gone."""

    def write(self, _):
        raise BrokenPipeError


def test_what_a_call_returns_and_raises_comes_through():
    assert attentive(divmod, 7, 4) == (1, 3)
    with pytest.raises(ZeroDivisionError):
        attentive(divmod, 7, 0)


def test_a_second_ctrl_c_interrupts():
    with Terminator():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Terminator() as terminator:
        signal.raise_signal(signal.SIGINT)
        assert not terminator.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert terminator.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_handlers_come_back_without_a_signal():
    before = signal.getsignal(signal.SIGTERM)
    with Terminator():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_it_does_nothing():
    results = []

    def work():
        with Terminator() as terminator:
            results.append(terminator.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]


def watch(terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120)
    with Progress(10, title="search", console=console) as progress:
        progress.update(4)
        progress.update(5, epoch="1/2", reward=np.float32(0.71239))
        progress.log("epoch 1  [reward] 0.7124")
    return screen.getvalue()


def test_a_terminal_gets_a_bar():
    screen = watch(terminal=True)
    for text in ("search", " 50%", "epoch 1/2", "reward 0.7124", "epoch 1  [reward] 0.7124"):
        assert text in screen


def test_a_file_gets_only_the_logged_lines():
    assert watch(terminal=False) == "epoch 1  [reward] 0.7124\n"
