"""Chips of a fault campaign one after the other, beside several at once under vmap.

Where weights fail, vmap makes of a convolution one with a group for every chip; where features
fail, a larger batch. What a campaign takes for best on a CPU, one chip after the other, is measured
here against the other way, for networks and faults of all kinds.
"""

import contextlib
from collections.abc import Iterator

from benchmarks.campaigns import OurChips, Work, measure_chips, side
from benchmarks.rows import Row

NETWORKS = (("resnet18", 0.25), ("resnet18", 0.5), ("vgg16", 0.25), ("mobilenet_v2", 0.25))
"""Names and widths."""

FAULTS = ("stuck_at:p0=0.067,p1=0.013", "mibb:p_m=0.0001", "mibb:p_m=0.0001,per=chip")
"""Of weights, of features anew for every image, of features that stay."""

AT_ONCE = 4
CHIPS = 8
"""A multiple of what two devices do at once."""

_ROUNDS = 6


def routes(rounds: int, with_peer: bool) -> Iterator[Row]:
    """A row for every network and kind of faults; the peer is our own other way."""
    del with_peer
    for base, width in NETWORKS:
        for faults in FAULTS:
            work = Work(faults, base, width, images=128)
            with contextlib.ExitStack() as sides:
                one = sides.enter_context(side(OurChips, work, 1))
                several = sides.enter_context(side(OurChips, work, AT_ONCE))
                own, theirs = one.call("compile"), several.call("compile")
                peers = {f"{AT_ONCE} at once": several}
                (row,) = measure_chips(work, CHIPS, min(rounds, _ROUNDS), one, peers)
                row.facts |= own | {f"peer's {name}": value for name, value in theirs.items()}
                yield row
