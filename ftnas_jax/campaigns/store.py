"""A campaign's directory: what it is of, its networks, and its table of chips.

    config.json      what every row depends on: key, images, batch size, number formats
    networks.json    digest and clean accuracy of each network
    chips.csv, rights.bin    see `ftnas_jax.campaigns.table`

Where several processes work at one campaign, the first keeps the directory; the others read what is
there when they begin, and know the rest from what they compute together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftnas_jax.campaigns.table import ChipTable
from ftnas_jax.checkpoints import RunError
from ftnas_jax.processes import is_first, wait
from ftnas_jax.run import RunDir, read_json

_NETWORKS = "networks.json"


class Store:
    """Rows of a campaign, and what they are of.

    Args:
        workdir: the directory; None to keep all in memory.
        identity: what every row depends on.
        images: N, of the test set.

    Raises:
        RunError: the directory holds another campaign, or something else.
    """

    def __init__(self, workdir: str | Path | None, identity: Mapping[str, Any], images: int):
        self._networks: dict[str, dict[str, Any]] = {}
        self._run: RunDir | None = None
        if workdir is None:
            self.table = ChipTable(images)
            return
        first = is_first()
        if first:
            self._run = RunDir(workdir, identity, job="campaign")
            self.table = self._opened(Path(workdir), images, True)
        wait("campaign opened")
        if not first:
            self.table = self._opened(Path(workdir), images, False)
        wait("campaign read")

    def claim(self, name: str, sha256: str) -> None:
        """Add a network, or refuse another one of the same name.

        Raises:
            RunError: the directory has rows of another network by this name.
        """
        known = self._networks.setdefault(name, {"sha256": sha256})
        if known["sha256"] != sha256:
            raise RunError(
                f"{self._place()} has chips of another network called {name}, with other weights; "
                "use another directory or name"
            )
        self._save()

    def note_clean(self, name: str, correct: int) -> None:
        """Keep how many images a network classifies rightly without faults."""
        self._networks[name]["clean_correct"] = correct
        self._save()

    def clean(self, name: str) -> int:
        """What `note_clean` was told."""
        return self._networks[name]["clean_correct"]

    def close(self) -> None:
        """Let another process in."""
        if self._run is not None:
            self._run.close()

    def _opened(self, folder: Path, images: int, write: bool) -> ChipTable:
        try:
            self._networks = read_json(folder / _NETWORKS) or {}
            return ChipTable(images, folder, write=write)
        except BaseException:
            self.close()
            raise

    def _save(self) -> None:
        if self._run is not None:
            self._run.write_json(_NETWORKS, self._networks)

    def _place(self) -> str:
        return "the campaign" if self._run is None else str(self._run.path)
