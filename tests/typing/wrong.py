"""Uses that must not type-check: a checker that accepts one complains about its comment."""

from background import DaskExecutor, ThreadExecutor, background, configure, flush, snapshot


@background
def plot(step: int, *, title: str = "") -> str:
    return title * step


@background
async def fetch(step: int) -> str:
    return str(step)


class Shape:
    @background
    def method(self, x: int) -> str:
        return str(x)


plot("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plot()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
plot(1, name="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
plot(1).upper()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
Shape().method("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Shape().method(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
number: int = plot(1).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
background(7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
background(workers=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
background(executor=ThreadExecutor)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
configure(executor="thread")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
configure(debug="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
background(snapshot=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
text: str = snapshot([1])  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
snapshot.register(int, len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
flush("soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
background(len, max_pending="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
background(overflow="drop")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
fetch("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
fetch(1).upper()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
DaskExecutor("tcp://127.0.0.1:8786")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
DaskExecutor().submit(len, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
