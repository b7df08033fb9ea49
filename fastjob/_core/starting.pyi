from collections.abc import Callable
from threading import Thread

def start_thread(
    target: Callable[..., object], name: str, args: tuple[object, ...] = ()
) -> Thread: ...
def start_bare_thread(target: Callable[..., object], *args: object) -> None: ...
