"""A campaign's directory: what it is of, its networks, and its table of chips.

    config.json      what every row depends on: key, images, batch size, number formats
    networks.json    digest and clean accuracy of each network
    chips.csv, rights.bin    see `ftnas_jax.campaigns.table`

Where several processes work at one campaign, the first keeps the directory; the others read what is
there when they begin, and know the rest from what they compute together. So they all must see one
directory: what they find there is compared.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ftnas_jax.campaigns.table import CHIPS, RIGHTS, ChipTable
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
        self._check_shared(Path(workdir))

    def claim(self, name: str, sha256: str) -> None:
        """Add a network, or refuse another one of the same name.

        Raises:
            RunError: the directory has rows of another network by this name.
        """
        known = self._networks.get(name, {})
        if not self._has_chips(name):
            known = known if known.get("sha256") == sha256 else {"sha256": sha256}
            self._networks[name] = known
        elif not {"sha256", "clean_correct"} <= set(known):
            raise RunError(
                f"{self._place()} has chips of {name}, of which {_NETWORKS} does not say what "
                "network it is; restore that file, or use another --workdir"
            )
        elif known["sha256"] != sha256:
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

    def _has_chips(self, name: str) -> bool:
        return any(chips for (network, _), chips in self.table.cells.items() if network == name)

    def _check_shared(self, folder: Path) -> None:
        """Refuse, on all processes, where one has read other files than the first."""
        if jax.process_count() == 1:
            return
        own = np.frombuffer(_digest(folder), np.uint8)
        alike = np.array_equal(own, multihost_utils.broadcast_one_to_all(own))
        if not np.all(multihost_utils.process_allgather(np.array(alike))):
            self.close()
            raise RunError(
                f"not all processes see the same files in {folder}; name a --workdir on a disk "
                "that they share"
            )

    def _opened(self, folder: Path, images: int, write: bool) -> ChipTable:
        try:
            self._networks = _read_networks(folder / _NETWORKS)
            return ChipTable(images, folder, write=write)
        except BaseException:
            self.close()
            raise

    def _save(self) -> None:
        if self._run is not None:
            self._run.write_json(_NETWORKS, self._networks)

    def _place(self) -> str:
        return "the campaign" if self._run is None else str(self._run.path)


def _read_networks(path: Path) -> dict[str, dict[str, Any]]:
    """Networks by name; none where there is no file."""
    try:
        found = read_json(path) or {}
    except RunError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise RunError(f"{path} is damaged; restore it, or use another --workdir")
    return found


def _digest(folder: Path) -> bytes:
    """Of all files of a campaign."""
    digest = hashlib.sha256()
    for name in ("config.json", _NETWORKS, CHIPS, RIGHTS):
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.exists() else b"none")
    return digest.digest()
