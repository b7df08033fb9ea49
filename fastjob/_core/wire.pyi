class WireError(Exception): ...

class Channel:
    fd: int
    n_sends: int
    n_receives: int
    bytes_sent: int
    bytes_received: int
    def __init__(self, fd: int) -> None: ...
    def close(self) -> None: ...
