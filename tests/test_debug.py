"""C4: `configure(debug=True)` finds the arguments that change under a call."""

from __future__ import annotations

import dataclasses
import functools
import gc
import io
import logging
import pickle
import random
import types
import weakref
from array import array
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest
from conftest import Held, Log

from background import background, configure, flush
from background._core.ledger import watchers
from background._debug import told
from background._snapshot.objects import told as named


@pytest.fixture(autouse=True)
def debugging() -> Iterator[None]:
    """Debug, with nothing told before."""
    told.clear()
    with configure(debug=True):
        yield


def plot(*args: Any, **kwargs: Any) -> None:
    """Stand for a function that gets what the tests change."""


@dataclasses.dataclass
class Data:
    x: Any


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    x: Any


class Unknown:
    x = 0


class Holder:
    def __init__(self, x: Any) -> None:
        self.x = x

    @functools.cached_property
    def look(self) -> Any:
        return [self.x]

    def method(self) -> None: ...


class Stated(Holder):
    """One that says what is copied."""

    def __getstate__(self) -> Any:
        return {"x": self.x}


class Copied(Holder):
    """One that copies itself."""

    def __deepcopy__(self, memo: Any) -> Copied:
        return Copied(list(self.x))


class Rows(dict[str, Any]):
    """A dict with more."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.more: list[int] = []


def objects() -> Any:
    made = np.empty(2, object)
    made[:] = [[1], None]
    return made


rows = functools.partial(np.zeros, 2, [("a", int)])
cases: list[tuple[Callable[[], Any], Callable[[Any], object], str]] = [
    (lambda: [1], lambda v: v.append(2), ""),
    (lambda: [1], lambda v: v.__setitem__(0, 2), ""),
    (lambda: [-1], lambda v: v.__setitem__(0, -2), ""),
    (lambda: [[1]], lambda v: v.__setitem__(0, {}), ""),
    (lambda: [[1], 2], lambda v: v[0].clear(), "[0]"),
    (lambda: [[1], [2]] * 2, lambda v: v.__setitem__(2, v[1]), "[2]"),
    (lambda: ([1],), lambda v: v[0].clear(), "[0]"),
    (lambda: {"w": [0, [1]]}, lambda v: v["w"][1].append(2), "['w'][1]"),
    (lambda: {"w": 1}, lambda v: v.update(w=2), ""),
    (lambda: {"w": 1}, lambda v: v.update(b=2), ""),
    (lambda: {"w": [1, 2]}, lambda v: v.clear(), ""),
    (lambda: {1, 2}, lambda v: v.remove(2), ""),
    (lambda: deque([[1]]), lambda v: v[0].append(2), "[0]"),
    (lambda: bytearray(3), lambda v: v.__setitem__(1, 1), ""),
    (lambda: array("d", [1.0]), lambda v: v.__setitem__(0, 2.0), ""),
    (lambda: Data([1]), lambda v: v.x.append(2), ".x"),
    (lambda: Data(1), lambda v: setattr(v, "x", 2), ""),
    (lambda: Slotted(np.zeros(2)), lambda v: v.x.fill(1), ".x"),
    (lambda: types.SimpleNamespace(a={"b": [1]}), lambda v: v.a["b"].clear(), ".a['b']"),
    (lambda: Unknown(), lambda v: setattr(v, "x", 1), ""),
    (lambda: Holder([1]), lambda v: v.x.append(2), ".x"),
    (lambda: {Holder([1])}, lambda v: next(iter(v)).x.append(2), "{…}.x"),
    (lambda: [Stated([1])], lambda v: v[0].x.append(2), "[0]"),
    (lambda: Copied([1]), lambda v: v.x.append(2), ".x"),
    (lambda: Holder([1]).method, lambda v: v.__self__.x.append(2), ".__self__.x"),
    (lambda: functools.partial(len, [1]), lambda v: v.args[0].append(2), ".args[0]"),
    (lambda: {"a": [1]}.values(), lambda v: next(iter(v)).append(2), "['a']"),
    (lambda: types.MappingProxyType({"a": [1]}), lambda v: v["a"].append(2), "['a']"),
    (lambda: ValueError([1]), lambda v: v.args[0].append(2), ".args[0]"),
    (lambda: ValueError(1), lambda v: v.add_note("more"), ""),
    (lambda: UserDict(a=[1]), lambda v: v["a"].append(2), ".data['a']"),
    (lambda: io.BytesIO(b"a"), lambda v: v.write(b"b"), ""),
    (lambda: memoryview(bytearray(2)), lambda v: v.__setitem__(0, 1), ""),
    (lambda: random.Random(1), lambda v: v.random(), ""),
    (lambda: np.random.default_rng(1), lambda v: v.random(), ""),
    (lambda: np.ma.MaskedArray([1], fill_value=2), lambda v: v._fill_value.fill(3), "._fill_value"),
    (lambda: Rows(a=1), lambda v: v.more.append(1), ".more"),
    (lambda: [Unknown()], lambda v: v.__setitem__(0, Unknown()), "[0]"),
    (lambda: np.zeros((3, 4)), lambda v: v[1:2].fill(1), ""),
    (lambda: np.zeros(9)[::3], lambda v: v.base.__setitem__(3, 1), ""),
    (lambda: np.zeros(2), lambda v: v.resize((2, 1), refcheck=False), ""),
    (lambda: np.array(["2020"], "M8[s]"), lambda v: v.__setitem__(0, "2021"), ""),
    (lambda: np.ma.MaskedArray([1, 2]), lambda v: v.__setitem__(0, np.ma.masked), ""),
    (objects, lambda v: v[0].append(2), "[0]"),
    (lambda: [rows()], lambda v: v[0]["a"].fill(1), "[0]"),
    (lambda: rows()[0], lambda v: v.__setitem__("a", 1), ""),
]


def changed(make: Callable[[], Any], change: Callable[[Any], object], held: Held, log: Log) -> Any:
    """Return what is said of two arguments that change before the start."""
    value, named = make(), make()
    call = background(plot, executor=held.executor)
    call(0, value, name=named)
    change(value)
    change(named)
    held.gate.set()
    flush()
    return [(line.partition(", called at ")[0], line.split(": ")[1]) for line in log.warnings]


CHANGED = " changed between the call and its start, and the call sees it changed; write"


@pytest.mark.parametrize(("make", "change", "path"), cases)
def test_a_change_is_named(make: Any, change: Any, path: str, held: Held, log: Log) -> None:
    """C4: the warning names the call, and the path to what changed in each argument."""
    said = changed(make, change, held, log)
    assert [title for title, _ in said] == ["plot(…)"] * 2
    assert sorted(text.partition(CHANGED)[0] for _, text in said) == [
        f"args[1]{path}",
        f"kwargs['name']{path}",
    ]


def test_it_says_where_and_what_to_do(held: Held, log: Log) -> None:
    """C4: the warning says where the call was made and what keeps its values."""
    value = [1]
    background(plot, executor=held.executor)(value)
    value.clear()
    held.gate.set()
    flush()
    (line,) = log.warnings
    assert line.startswith("plot(…), called at test_debug.py:")
    assert "@background(snapshot=True)" in line


@pytest.mark.parametrize(("make", "change", "path"), cases)
def test_what_stays_is_not_named(make: Any, change: Any, path: str, held: Held, log: Log) -> None:
    """C4: what doesn't change between call and start is no false alarm."""
    assert changed(make, lambda value: None, held, log) == []


def cycle() -> Any:
    made: list[Any] = [1, float("nan"), ()]
    made += [made, {"self": made}]
    return made


@pytest.mark.parametrize("make", [cycle, lambda: [np.array([np.nan])], lambda: {(1, 2): [None]}])
def test_strange_values_are_no_alarm(make: Any, held: Held, log: Log) -> None:
    """C4: neither NaN nor a cycle looks like a change."""
    assert changed(make, lambda value: None, held, log) == []


def test_a_change_in_a_cycle(held: Held, log: Log) -> None:
    """C4: a change is found in what leads back to itself, too."""
    assert len(changed(cycle, lambda value: value[4].clear(), held, log)) == 2


def test_what_is_computed_on_demand_is_no_change(held: Held, log: Log) -> None:
    """C4: a cached property that is read between the call and its start is no false alarm."""
    assert changed(lambda: Holder(1), lambda value: value.look, held, log) == []


def test_what_can_not_be_looked_at_is_named(held: Held, log: Log) -> None:
    """C4: a type whose objects can be neither copied nor looked at is named once."""
    named.discard("numpy.flatiter")
    call = background(plot, executor=held.executor)
    call(np.zeros(2).flat)
    call([np.zeros(2).flat])
    held.gate.set()
    flush()
    (line,) = log.warnings
    assert "numpy.flatiter" in line
    assert "snapshot.register" in line


def test_tensors(held: Held, log: Log) -> None:
    """C4: a training step on the weights is found."""
    torch = pytest.importorskip("torch")

    def make() -> Any:
        parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
        return {"w": parameter.T, "b": torch.ones(()), "s": torch.eye(2).to_sparse()}

    said = changed(make, lambda value: value["w"].data.add_(1), held, log)
    assert [text.partition(CHANGED)[0] for _, text in said] in (
        ["args[1]['w']", "kwargs['name']['w']"],
        ["kwargs['name']['w']", "args[1]['w']"],
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library: str, held: Held, log: Log) -> None:
    """C4: a frame that changes is found, one that stays is no false alarm."""
    frames = pytest.importorskip(library)

    def make() -> Any:
        return {"f": frames.DataFrame({"x": [1.0, None], "y": ["a", "b"]})}

    def change(value: dict[str, Any]) -> None:
        if library == "pandas":
            value["f"].loc[0, "x"] = 2.0
        else:
            value["f"][0, "x"] = 2.0

    background(plot, executor=held.executor)(make())
    said = changed(make, change, held, log)
    assert sorted(text.partition(CHANGED)[0] for _, text in said) == [
        "args[1]['f']",
        "kwargs['name']['f']",
    ]


def test_each_function_and_argument_once(held: Held, log: Log) -> None:
    """T3: a function's argument is named once, however many calls see it change."""
    value, other = [0], [0]
    one = background(lambda *_: None, executor=held.executor)
    two = background(lambda *_: None, executor=held.executor)
    for i in range(3):
        one(value, other)
        two(value)
        value.append(i)
        other.append(i)
    held.gate.set()
    flush()
    assert len(log.warnings) == 3


def test_copies_do_not_change(held: Held, log: Log) -> None:
    """C4: with `snapshot=True` there is nothing to find."""
    value = [1]
    future = background(len, executor=held.executor, snapshot=True)(value)
    value.append(2)
    held.gate.set()
    assert future.result() == 1
    assert not log.warnings


class Hostile:
    """A value that fails whoever looks at it."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise ValueError

    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise ValueError


@dataclasses.dataclass(eq=False, repr=False)
class HostileData(Hostile):
    x: int = 0


class HostileKey(HostileData):
    def __hash__(self) -> int:
        return 1


def deep() -> Any:
    made: list[Any] = []
    for _ in range(5000):
        made = [made]
    return made


@pytest.mark.parametrize("make", [Hostile, HostileData, lambda: {HostileKey(): [1]}, deep])
def test_whatever_an_argument_is_the_call_runs(
    make: Any, executor_in_memory: Executor, log: Log
) -> None:
    """C4: a value that can't be looked at takes no call with it."""
    value = make()
    assert background(lambda x: x is value, executor=executor_in_memory)(value).result()
    assert not log.warnings


class HostileFunction:
    """A callable that answers for its attributes by an error."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)

    def __call__(self, x: list[int]) -> int:
        return len(x)


def test_whatever_a_function_is_it_runs(held: Held) -> None:
    """C4: a function that can't be named still runs."""
    value = [1]
    future = held.executor.submit(HostileFunction(), value)
    value.append(2)
    held.gate.set()
    assert future.result() == 2


def test_the_outcome_is_the_functions_own(executor: Executor) -> None:
    """I1: with debug on, results, failures and their notes are what they are without."""

    def fail(x: Any) -> None:
        raise ValueError(x)

    assert background(divmod, executor=executor)(7, 2).result() == (3, 1)
    bound = functools.partial(fail, [1])
    assert isinstance(background(bound, executor=executor)().exception(), ValueError)
    power = functools.partial(pow, 2, mod=5)
    assert background(power, executor=executor)(4).result() == 1
    error = background(fail, executor=executor)([1]).exception()
    assert isinstance(error, ValueError)
    assert error.__notes__[-1].startswith("fail(…), called at test_debug.py:")


def test_nothing_is_kept(executor: Executor) -> None:
    """C6: with debug on, a done call holds nothing either; nor does a dropped failure."""

    def fail(x: Any) -> None:
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        value, bad = Data([1]), Data([1])
        alive = [weakref.ref(value), weakref.ref(bad)]
        kept = background(plot, executor=executor)(value)
        logging.getLogger("background").setLevel(logging.CRITICAL + 1)
        background(fail, executor=executor)(bad)
        del value, bad
        flush()
        logging.getLogger("background").setLevel(logging.NOTSET)
        assert [ref() for ref in alive] == [None, None]
        assert kept.done()
    finally:
        gc.enable()


def test_an_executor_that_packs_is_left_alone(held: Held) -> None:
    """C4: for an executor that pickles at the call there is nothing to look for."""
    held.executor._packs = True
    future = background(plot, executor=held.executor)([1])
    assert future._function is plot  # type: ignore[attr-defined]
    held.gate.set()


def test_what_is_sent_elsewhere_is_the_function(held: Held) -> None:
    """C4: an executor that pickles late sends the function, without what is known here alone."""
    future = background(plot, executor=held.executor)([1])
    sent = pickle.loads(pickle.dumps(future._function))  # type: ignore[attr-defined]
    assert type(sent) is functools.partial
    assert sent.func is plot
    held.gate.set()


def test_it_ends_with_its_block(held: Held, log: Log) -> None:
    """C4: as a context manager it restores what was before, and off is off."""
    with configure(debug=False):
        assert not watchers
        value = [1]
        background(plot, executor=held.executor)(value)
        value.clear()
        with configure(exit_timeout=None):
            assert not watchers
    assert watchers
    held.gate.set()
    flush()
    assert not log.warnings


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_wrong_options(wrong: Any) -> None:
    """D3: what is neither True nor False is a TypeError, and changes nothing."""
    with pytest.raises(TypeError, match="debug must be True or False"):
        configure(debug=wrong)
    assert watchers
