"""What a user may choose, and how progress is reported. It knows no other room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose. ``only`` and ``without`` are globs over node names.

    ``approximate_borders`` takes merges that hold in the interior alone; ``keep_post_bn`` leaves
    each BatchNormalization that nothing linear reads.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int | None, ...]] | None = None
    verify: bool = True
    approximate_borders: bool = False
    keep_post_bn: bool = False

    def admits(self, label: str) -> bool:
        if any(fnmatchcase(label, pattern) for pattern in self.without):
            return False
        return not self.only or any(fnmatchcase(label, pattern) for pattern in self.only)
