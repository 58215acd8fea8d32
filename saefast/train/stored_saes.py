"""SAEs that are loaded when they are used."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from saefast.sae import SAE
from saefast.storage import load_sae


class StoredSAEs(Sequence[SAE]):
    """SAEs of a run, each of which is loaded from its folder when it is first accessed.

    Args:
        folders: folder of each SAE.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._loaded: dict[Path, SAE] = {}

    def __len__(self) -> int:
        return len(self._folders)

    @overload
    def __getitem__(self, index: int) -> SAE: ...

    @overload
    def __getitem__(self, index: slice) -> list[SAE]: ...

    def __getitem__(self, index: int | slice) -> SAE | list[SAE]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        folder = self._folders[index]
        if folder not in self._loaded:
            self._loaded[folder] = load_sae(folder)
        return self._loaded[folder]
