from collections.abc import Callable
from threading import Thread

def start_thread(
    target: Callable[..., object], name: str, args: tuple[object, ...] = ()
) -> Thread: ...
