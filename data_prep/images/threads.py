"""Applies a function to images in threads, a bounded number at a time."""

import queue
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def apply(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int,
    held: int,
) -> Iterator[_Result]:
    """Yields function(item) for each item, in the order in which they finish.

    Args:
      function: called in threads; its decoders release the GIL.
      items: taken as there is room, in the caller's thread.
      threads: how many calls run at the same time.
      held: how many items there are at the same time: waiting, or in a call.

    Raises what `function` or `items` raises.
    """
    done: queue.SimpleQueue[Future[_Result]] = queue.SimpleQueue()
    # Pillow's decoders are called with warnings ignored, which is a setting of the
    # whole process: while threads set and restore it in any order, it must not change.
    with warnings.catch_warnings(), ThreadPoolExecutor(threads, "image") as pool:
        warnings.simplefilter("ignore")
        running = 0
        for item in items:
            pool.submit(function, item).add_done_callback(done.put)
            running += 1
            del item  # a local variable would keep the image alive
            if running == held:
                yield done.get().result()
                running -= 1
        for _ in range(running):
            yield done.get().result()
