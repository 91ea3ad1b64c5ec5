"""A model in this process that is asked as a server is."""

from pathlib import Path

import numpy as np

from pipeline.core.errors import ConfigError
from pipeline.serve.client.answers import Answer
from pipeline.serve.client.client import Answering
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.runtime.answer import answers
from pipeline.serve.runtime.encoder import Encoder
from pipeline.serve.runtime.errors import RequestError
from pipeline.serve.runtime.program import Ask, Program
from pipeline.serve.runtime.request import Reader


class LocalClient(Answering):
    """Answers as `Client` does: requests are read and encoded by the code that runs in Triton.

    `pipeline.in_process.open_run` makes one of a run. ConfigError for what a server would refuse.
    """

    def __init__(self, served: ServedModel, directory: Path, ask: Ask) -> None:
        """Read `encoder.json` and its tables in `directory`; `ask` runs the model."""
        encoder = Encoder(directory)
        self._served = served
        self._reader = Reader(encoder)
        self._program = Program(encoder, ask)

    def close(self) -> None:
        """Nothing: there is no connection."""

    @property
    def served(self) -> ServedModel:
        """What the model takes."""
        return self._served

    def infer(self, tensors: dict[str, np.ndarray], *, embeddings: bool = False) -> Answer:
        """One request of (B, n) tensors as they are."""
        k = tensors.get("k")
        if k is not None and not ((k >= 1) & (k <= self._served.max_k)).all():
            raise ConfigError(
                f"k is {k.flat[0]}, expected 1 to {self._served.max_k}, the items of the catalogue."
            )
        try:
            request = self._reader.read({name: _sent(given) for name, given in tensors.items()})
        except RequestError as error:
            raise ConfigError(str(error)) from None
        except UnicodeError as error:
            raise ConfigError(f"A value is not text in UTF-8: {error}.") from None
        wanted = ("item_ids", "scores", *(["embedding"] if embeddings else []))
        lists = self._program([request])
        found = answers(request, lists, self._reader.encoder.items, wanted)
        vectors = found["embedding"] if embeddings else None
        return Answer.of(found["item_ids"], found["scores"], vectors)


def _sent(given: np.ndarray) -> np.ndarray:
    """As it arrives at a server: text is bytes there."""
    if given.dtype.kind not in "OU":
        return given
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in given.reshape(-1).tolist()]
    sent = np.empty(len(texts), object)
    sent[:] = texts
    return sent.reshape(given.shape)
