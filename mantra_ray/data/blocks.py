"""One function over many blocks, in this process or as Ray tasks: results come in the order of the blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from mantra_ray.errors import InputError

# (function, what all blocks share, arguments of each block) -> results
Mapper = Callable[[Callable[..., Any], Any, Sequence[tuple]], Iterator[Any]]


def in_process(function: Callable[..., Any], shared: Any, blocks: Sequence[tuple]) -> Iterator[Any]:
    """`function(shared, *block)` of each block, one after the other."""
    for block in blocks:
        yield function(shared, *block)


def over_ray(function: Callable[..., Any], shared: Any, blocks: Sequence[tuple]) -> Iterator[Any]:
    """The same, a Ray task a block; Ray must be connected, and files that `function` opens be where its nodes are.

    Two tasks a CPU are under way at most, so that results which nobody has taken yet do not pile up. Results are
    taken in order: sums over them do not depend on which task was faster.
    """
    task = ray.remote(_answer)
    ahead = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    shared = ray.put(shared)
    waiting, running = deque(blocks), deque()
    while waiting or running:
        while waiting and len(running) < ahead:
            running.append(task.remote(function, shared, *waiting.popleft()))
        result, problem = ray.get(running.popleft())
        if problem:
            for rest in running:
                ray.cancel(rest)
            raise InputError(*problem)
        yield result


def _answer(function: Callable[..., Any], shared: Any, *block: Any) -> tuple[Any, tuple | None]:
    """The result, or what an InputError said: Ray would wrap the error itself in one of its own."""
    try:
        return function(shared, *block), None
    except InputError as error:
        return None, (error.file, error.field, error.value, error.problem)
