from fastjob._core.autobatch import AutoBatch
from fastjob._core.capture import Capture

class Intake:
    def __init__(self, capture: Capture, tuner: AutoBatch) -> None: ...
