"""Runs of a pool: who is next, short ones on the event loop, longer ones in threads, cancelled and closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gymrl.sandboxes import Limits, Sandbox, SandboxFault, open_sandbox
from gymrl.sandboxes.runs import QUICK
from gymrl.sandboxes.seats import Seats


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with asyncio.Runner() as runner:
        opened = open_sandbox("auto", workers=2)
        yield opened
        runner.run(opened.close())


def test_seats_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    async def main() -> list[int]:
        seats, order = Seats(2), list[int]()

        async def work(number: int) -> None:
            await seats.enter()
            order.append(number)
            await asyncio.sleep(0)
            seats.leave()

        await asyncio.gather(*(work(number) for number in range(50)))
        return order

    assert asyncio.run(main()) == list(range(50))


def test_a_seat_goes_past_those_who_do_not_wait_any_more() -> None:
    async def main() -> bool:
        seats = Seats(1)
        await seats.enter()
        waiting = [asyncio.create_task(seats.enter()) for _ in range(3000)]
        last = asyncio.create_task(seats.enter())
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        seats.leave()
        await asyncio.wait_for(last, 5)
        seats.leave()
        await asyncio.wait_for(seats.enter(), 5)  # none was lost
        return True

    assert asyncio.run(main())


def test_a_seat_given_to_a_task_that_is_cancelled_in_the_same_moment_is_not_lost() -> None:
    async def main() -> None:
        seats = Seats(1)
        await seats.enter()
        task = asyncio.create_task(seats.enter())
        await asyncio.sleep(0)
        seats.leave()  # it is the task's now, which does not know yet
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(seats.enter(), 5)

    asyncio.run(main())


def test_many_loops_share_a_pool(sandbox: Sandbox) -> None:
    found: dict[int, list[str]] = {}

    def player(number: int) -> None:
        async def main() -> list[str]:
            results = await asyncio.gather(*(sandbox.run(f"print({number} + {i})", 60) for i in range(20)))
            return [result.stdout for result in results]

        found[number] = asyncio.run(main())

    threads = [threading.Thread(target=player, args=(number,)) for number in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {n: [f"{n + i}\n" for i in range(20)] for n in (0, 100, 200)}


@pytest.mark.parametrize("pause", [0.0, 5 * QUICK])
def test_output_beyond_a_pipe_is_read_whichever_way_is_taken(sandbox: Sandbox, pause: float) -> None:
    code = f"import time\ntime.sleep({pause})\nprint('x' * 300_000)\nimport sys\nprint('end', file=sys.stderr)"
    result = asyncio.run(sandbox.run(code, 60))
    assert (result.exit, result.stderr) == (0, "end\n")
    assert result.stdout == "x" * Limits().output


def test_a_long_source_takes_the_way_of_a_thread(sandbox: Sandbox) -> None:
    code = "x = '" + "y" * 200_000 + "'\nprint(len(x))"
    assert asyncio.run(sandbox.run(code, 60)).stdout == "200000\n"


def test_cancelled_runs_give_their_workers_back(sandbox: Sandbox) -> None:
    async def main() -> str:
        for wait in (0.0, 0.001, 3 * QUICK):  # not begun, on the loop, in a thread
            tasks = [asyncio.create_task(sandbox.run("import time; time.sleep(0.3)", 60)) for _ in range(6)]
            await asyncio.sleep(wait)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
        return (await asyncio.wait_for(sandbox.run("print('next')", 60), 60)).stdout

    assert asyncio.run(main()) == "next\n"


def test_a_loop_that_ends_with_runs_on_it_leaves_the_pool_whole() -> None:
    pool = open_sandbox("auto", workers=1)
    asyncio.run(pool.run("pass", 60))
    loops = [asyncio.new_event_loop() for _ in range(2)]
    held = []
    for loop in loops:  # the first run is begun, the second waits for it; nobody cancels either
        held.append(loop.create_task(pool.run("import time; time.sleep(0.2)", 60)))
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
    for loop in loops:
        loop.close()

    async def after() -> list[str]:
        results = [r.stdout for r in await asyncio.gather(*(pool.run("print(1)", 60) for _ in range(8)))]
        await pool.close()
        return results

    assert asyncio.run(asyncio.wait_for(after(), 60)) == ["1\n"] * 8
    for task in held:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_closing_sees_to_the_run_of_a_loop_that_stands_still() -> None:
    pool = open_sandbox("auto", workers=1)
    with asyncio.Runner() as runner:
        runner.run(pool.run("pass", 60))
        loop = runner.get_loop()
        task = loop.create_task(pool.run("print('whole')", 60))
        for _ in range(2):
            loop.run_until_complete(asyncio.sleep(0))
        closing = threading.Thread(target=lambda: asyncio.run(pool.close()))
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
        assert loop.run_until_complete(task).stdout == "whole\n"


def test_closing_waits_for_the_runs_in_flight() -> None:
    async def main() -> list[str]:
        pool = open_sandbox("auto", workers=1)
        await pool.run("pass", 60)
        code = "import time; time.sleep({}); print('whole')"
        runs = [asyncio.create_task(pool.run(code.format(t), 60)) for t in (0.0, 2 * QUICK, 0.0)]
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(SandboxFault, match="closed"):
            await pool.run("pass")
        return [(await run).stdout for run in runs]

    assert asyncio.run(main()) == ["whole\n"] * 3
