"""How far a run is, and where its time goes. It knows no other room.

One stage follows another without a gap, so that their seconds add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

STAGES = {
    "imports": "loading what the run needs (onnxruntime counts in run)",
    "read": "reading and parsing the file",
    "shapes": "indexing the graph, inferring shapes, finding constants",
    "plan": "lifting nodes and searching for the cheapest plan, layouts included",
    "fold": "composing and adding kernels",
    "splice": "writing the new nodes into the graph and checking it",
    "prove": "the proofs of the regions in float64",
    "run": "the run of the whole model",
    "report": "counting, and describing what was done",
    "write": "making the file's bytes and writing them",
}
"""What a run spends its time on, in the order of the pipeline."""

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many of these are done, and how many there are."""


def unseen(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class Watch:
    """The progress of one run and the seconds of its stages.

    Rounds come back to a stage; its seconds are those of all visits. Time is counted from the
    watch's making on.
    """

    def __init__(self, show: Progress = unseen) -> None:
        self.show = show
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._met = {"imports"}
        self._stage = "imports"
        self._since = perf_counter()

    def enter(self, stage: str) -> None:
        """Count what follows as time of one of `STAGES`. Raises `KeyError` for any other."""
        now = perf_counter()
        self._spent[self._stage] += now - self._since
        self._spent[stage] += 0.0
        self._met.add(stage)
        self._stage, self._since = stage, now

    def stages(self) -> dict[str, float]:
        """The seconds of each stage met so far."""
        self.enter(self._stage)
        return {stage: self._spent[stage] for stage in STAGES if stage in self._met}
