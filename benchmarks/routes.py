"""Chips of a fault campaign one after the other, beside several at once under vmap.

Where weights fail, vmap makes of a convolution one with a group for every chip; where features
fail, a larger batch. What a campaign takes for best on a CPU, one chip after the other, is measured
here against the other way, for networks and faults of all kinds.
"""

from collections.abc import Iterator

from benchmarks.campaigns import OurChips, Work, side
from benchmarks.rows import Row

NETWORKS = (("resnet18", 0.25), ("resnet18", 0.5), ("vgg16", 0.25), ("mobilenet_v2", 0.125))
"""Names and widths."""

FAULTS = ("stuck_at:p0=0.067,p1=0.013", "mibb:p_m=0.0001", "mibb:p_m=0.0001,per=chip")
"""Of weights, of features anew for every image, of features that stay."""

AT_ONCE = 4
CHIPS = 8
"""A multiple of what two devices do at once."""

_ROUNDS = 6


class BothWays:
    """Two campaigns in one process, since there are devices that are one process's at a time."""

    def __init__(self, work: Work):
        self._ways = {at_once: OurChips(work, at_once) for at_once in (1, AT_ONCE)}

    def compile(self, at_once: int) -> dict[str, float]:
        """What it takes to compile the way of so many chips at once."""
        return self._ways[at_once].compile()

    def turn(self, at_once: int, chips: int) -> float:
        """Seconds that so many more chips take."""
        return self._ways[at_once].turn(chips)


def routes(rounds: int, with_peer: bool) -> Iterator[Row]:
    """A row for every network and kind of faults; the peer is our own other way."""
    del with_peer
    for base, width in NETWORKS:
        for faults in FAULTS:
            work = Work(faults, base, width, images=128)
            row = Row(f"{CHIPS} chips, {work}", [], f"{AT_ONCE} at once")
            with side(BothWays, work) as both:
                row.facts |= both.call("compile", 1)
                own = both.call("compile", AT_ONCE)
                row.facts |= {f"peer's {name}": value for name, value in own.items()}
                for _ in range(min(rounds, _ROUNDS)):
                    row.ours.append(both.call("turn", 1, CHIPS))
                    row.theirs.append(both.call("turn", AT_ONCE, CHIPS))
            yield row
