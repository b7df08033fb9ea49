from fastjob.recorder import CallTimeline

class Spans:
    worker: int
    def __init__(self, timeline: CallTimeline, worker: int, alone: bool) -> None: ...
