from fastjob._core.autobatch import AutoBatch
from fastjob._core.capture import Capture

NOTHING_YET: object

class Intake:
    def __init__(self, capture: Capture, tuner: AutoBatch) -> None: ...
