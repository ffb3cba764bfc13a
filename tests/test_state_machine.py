"""Everything that one may do, in any order, against a plain model."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Log, let_die
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from background import (
    BackgroundError,
    BacklogFull,
    Future,
    ThreadExecutor,
    background,
    configure,
    flush,
    stats,
)
from background._backlog import Overflow
from background._core import telling
from background._core.failures import failures
from background._core.telling import logger

POOL = ThreadPoolExecutor(1)


class Model:
    """What a call should come to: it waits until the gate opens, unless it is cancelled."""

    def __init__(self, number: int, fails: bool, children: int) -> None:
        self.number = number
        self.fails = fails
        self.children = children
        self.state = "waiting"
        self.looked = False
        self.dropped = False
        self.future: Future[None] | None = None


OVERFLOWS: list[Overflow] = ["block", "drop_oldest", "drop_newest", "raise"]


class Machine(RuleBasedStateMachine):
    """One worker, held by a gate at its first call, so that the model knows what has started."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        failures.take()
        telling._runs.clear()  # a thousand failures of one kind in a row are no log handler's
        self.log = Log()
        logger.addHandler(self.log)
        logger.propagate = False
        self.before = stats()
        self.executor = ThreadExecutor()
        self.restore = configure(executor=self.executor)
        self.models: list[Model] = []
        self.ran: list[int] = []
        self.expected: list[int] = []
        self.failed = self.succeeded = self.cancelled = self.logged = 0
        self.unseen = self.made = self.overflown = 0
        self.bounded = {
            overflow: background(max_pending=1, overflow=overflow)(self.ran.append)
            for overflow in OVERFLOWS
        }
        self.live: list[int] = []
        self.places: dict[str, list[int]] = {overflow: [] for overflow in OVERFLOWS}
        self.queued: list[int] = []  # the numbers of all that wait, in their order
        self.held_up: list[int] = []  # come after them: by threads that wait for a place
        self.threads: list[threading.Thread] = []
        self.close()

    def close(self) -> None:
        """Hold the worker."""
        self.gate, started = threading.Event(), threading.Event()

        def hold(gate: threading.Event) -> None:
            started.set()
            assert gate.wait(60)

        self.held = self.executor.submit(hold, self.gate)
        assert started.wait(20)

    def settle(self) -> None:
        """Let the model run what waits."""
        self.succeeded += 1  # the holding call
        self.queued += self.held_up
        self.held_up.clear()
        self.expected += self.queued
        numbers = {model.number for model in self.models}
        self.succeeded += sum(number not in numbers for number in self.queued)
        self.queued.clear()
        for places in self.places.values():
            places.clear()
        for model in self.models:
            if model.state != "waiting":
                continue
            self.expected.extend(-model.number for _ in range(model.children))
            self.succeeded += model.children
            if model.fails:
                model.state = "failed"
                self.failed += 1
                if not model.looked:
                    self.unseen += 1
                    self.logged += model.dropped
            else:
                model.state = "succeeded"
                self.succeeded += 1
        self.models = [model for model in self.models if not model.dropped]

    def drain(self, check: bool) -> None:
        """Open the gate, flush, compare, and hold the worker again."""
        self.gate.set()
        while self.threads:
            self.threads.pop().join(20)
        self.settle()
        if check and self.unseen:
            with pytest.raises(BackgroundError) as caught:
                flush(30, check=True)
            assert caught.value.count == self.unseen
            self.unseen = 0
            for model in self.models:
                model.looked |= model.state == "failed"
        else:
            flush(30, check=check)
        assert sorted(self.ran) == sorted(self.expected)
        assert [i for i in self.ran if i > 0] == [i for i in self.expected if i > 0]
        let_die()
        assert len(self.log.errors) == self.logged
        self.close()

    @rule(target=calls, fails=st.booleans(), children=st.integers(0, 3), wait=st.booleans())
    def call(self, fails: bool, children: int, wait: bool) -> Model:
        """Make a call that makes calls of its own and may wait for them."""
        self.made += 1
        number = self.made
        model = Model(number, fails, children)
        self.models.append(model)
        self.queued.append(number)

        @background
        def child() -> None:
            self.ran.append(-number)

        @background
        def parent() -> None:
            self.ran.append(number)
            made = [child() for _ in range(children)]
            for future in made if wait else []:
                future.result(20)
            if fails:
                raise ValueError(number)

        model.future = parent()
        return model

    @rule(overflow=st.sampled_from(OVERFLOWS), times=st.integers(1, 3))
    def call_bounded(self, overflow: Overflow, times: int) -> None:
        """Make calls of a function of which one may wait."""
        for _ in range(times):
            self.call_one(overflow)

    def call_one(self, overflow: Overflow) -> None:
        self.made += 1
        number, call, places = self.made, self.bounded[overflow], self.places[overflow]
        full = len(places) >= 1
        if not full or overflow == "drop_oldest":
            call(number)
        elif overflow == "raise":
            with pytest.raises(BacklogFull):
                call(number)
            return
        elif overflow == "drop_newest":
            assert call(number).cancelled()
            self.overflown += 1
            return
        else:
            thread = threading.Thread(target=call, args=(number,))
            thread.start()
            self.threads.append(thread)
            line = call._self_backlog.line  # type: ignore[attr-defined]
            while len(line) < len(self.threads):
                threading.Event().wait(0.0005)
            self.held_up.append(number)
            return
        if full and overflow == "drop_oldest":
            self.queued.remove(places.pop(0))
            self.overflown += 1
        places.append(number)
        self.queued.append(number)

    @rule(model=calls)
    def cancel(self, model: Model) -> None:
        """Cancel a call: exactly the waiting ones can be."""
        assert model.future is not None
        assert model.future.cancel() == (model.state in ("waiting", "cancelled"))
        if model.state == "waiting":
            model.state = "cancelled"
            self.queued.remove(model.number)
            self.cancelled += 1

    @rule(model=consumes(calls))
    def drop(self, model: Model) -> None:
        """Drop a future: its failure is logged once, now or when it happens."""
        model.dropped = True
        model.future = None
        if model.state == "failed" and not model.looked:
            self.logged += 1
        if model.state != "waiting":
            self.models.remove(model)
        let_die()
        assert len(self.log.errors) == self.logged

    @rule(model=calls)
    def look(self, model: Model) -> None:
        """Look at an outcome."""
        assert model.future is not None
        if model.state in ("failed", "succeeded"):
            assert (model.future.exception() is not None) == (model.state == "failed")
            if model.state == "failed" and not model.looked:
                self.unseen -= 1
                model.looked = True

    @rule()
    def call_with_a_snapshot(self) -> None:
        """Make a call on a live list, and change that before the call starts."""
        self.made += 1
        self.live.append(self.made)
        background(snapshot=True)(lambda live: self.ran.append(live[-1]))(self.live)
        self.queued.append(self.made)
        self.live.append(0)

    @rule(pool=st.booleans(), fails=st.booleans())
    def call_elsewhere(self, pool: bool, fails: bool) -> None:
        """Make a call on somebody's pool, or of a coroutine function, and wait for it."""

        def plain() -> None:
            if fails:
                raise ValueError

        async def coroutine() -> None:
            plain()

        function = background(executor=POOL)(plain) if pool else background(coroutine)
        future = function()
        assert (type(future.exception(20)) is ValueError) == fails
        self.failed += fails
        self.succeeded += not fails

    @rule(check=st.booleans())
    def flush_all(self, check: bool) -> None:
        """Flush, with and without check."""
        self.drain(check)

    @rule()
    def flush_too_early(self) -> None:
        """Flush with a timeout while the worker is held."""
        with pytest.raises(TimeoutError):
            flush(0)

    @rule()
    def change_the_executor(self) -> None:
        """Make another executor the default."""
        self.drain(False)
        self.gate.set()
        flush(30)
        self.succeeded += 1
        self.executor = ThreadExecutor()
        configure(executor=self.executor)
        self.close()

    @invariant()
    def counts(self) -> None:
        """Compare the counts, which always add up."""
        now = stats()
        assert now.waiting == len(self.queued)
        assert now.running == 1
        assert now.failed - self.before.failed == self.failed
        assert now.succeeded - self.before.succeeded == self.succeeded
        assert now.cancelled - self.before.cancelled == self.cancelled
        assert now.dropped - self.before.dropped == self.overflown
        done = now.succeeded + now.failed + now.cancelled + now.dropped
        assert now.submitted == now.waiting + now.running + done

    def teardown(self) -> None:
        """Run what is left."""
        self.gate.set()
        while self.threads:
            self.threads.pop().join(20)
        flush(30)
        self.restore.__exit__(None, None, None)
        failures.take()
        logger.removeHandler(self.log)
        logger.propagate = True


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
