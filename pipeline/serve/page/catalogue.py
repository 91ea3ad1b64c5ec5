"""The catalogue of one export, to look for items in."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pipeline.core.columns import ITEM
from pipeline.core.errors import ArtifactError
from pipeline.serve.runtime.lookups import read_values


class Catalogue:
    """Raw item ids as text, by falling frequency."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self._known = frozenset(ids)
        # a person turns the pages of one search, and many searches are of a catalogue's size
        self.find = lru_cache(maxsize=4)(self._find)

    @classmethod
    def read(cls, folder: Path, kind: Literal["int64", "string"]) -> "Catalogue":
        """From the tables that the server itself reads. ArtifactError if they are not there."""
        try:
            values = read_values(folder, ITEM, kind)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"The catalogue in {folder} cannot be read: {error}.") from None
        if isinstance(values, list):
            return cls([value.decode("utf-8", "replace") for value in values])
        return cls([str(value) for value in values.tolist()])

    def __contains__(self, item: str) -> bool:
        return item in self._known

    def __len__(self) -> int:
        return len(self.ids)

    def _find(self, words: str) -> list[str]:
        """Ids that hold `words`, in any case; the one that equals them comes first."""
        if not words:
            return self.ids
        wanted = words.casefold()
        found = [item for item in self.ids if wanted in item.casefold()]
        if words in self._known:
            found.remove(words)
            found.insert(0, words)
        return found
