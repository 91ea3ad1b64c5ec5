"""Catalogue of one export and its search."""

from functools import lru_cache
from pathlib import Path

from pipeline.core.columns import ITEM
from pipeline.core.errors import ArtifactError
from pipeline.serve.runtime.lookups import read_values


class Catalogue:
    """Raw item ids as text, by falling frequency."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self._set = frozenset(ids)
        # the pages of one search are asked for in turn, and a result may be as large as `ids`
        self.search = lru_cache(maxsize=4)(self._search)

    @classmethod
    def read(cls, folder: Path, kind: str) -> "Catalogue":
        """Read the tables of the request runtime. ArtifactError if they are missing."""
        try:
            values = read_values(folder, ITEM, kind)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"The catalogue in {folder} cannot be read: {error}.") from None
        if isinstance(values, list):
            return cls([value.decode("utf-8", "replace") for value in values])
        return cls([str(value) for value in values.tolist()])

    def __contains__(self, item: str) -> bool:
        return item in self._set

    def __len__(self) -> int:
        return len(self.ids)

    def _search(self, text: str) -> list[str]:
        """Return the ids that contain `text` in any case, the one that equals it first."""
        if not text:
            return self.ids
        folded = text.casefold()
        items = [item for item in self.ids if folded in item.casefold()]
        if text in self._set:
            items.remove(text)
            items.insert(0, text)
        return items
