"""Scorers: modules that score the catalogue for a session from fitted tables in buffers.

They are tensor code that TorchScript compiles.

Letters: B sessions, L positions, V rows of the item table, R interactions that a scorer reads, N
entries.
"""

import torch
from torch import Tensor, nn

_ENTRIES_AT_ONCE = 1 << 21
"""Entries per step of `Scorer.forward`, about 100 bytes each."""


def newest_values(values: Tensor, count: int) -> Tensor:
    """(B, L) indices, padded on the right -> (B, count) without reserved indices, newest first.

    Column d - 1 is the value at distance d from the end, 0 beyond the oldest. Of repeated values
    only the newest is kept; the others are 0.
    """
    first = 3
    is_value = values >= first
    distance = is_value.flip([1]).to(torch.int64).cumsum(1).flip([1])
    column = torch.where(is_value & (distance <= count), distance - 1, count)
    newest = torch.zeros([values.size(0), count + 1], dtype=torch.int64, device=values.device)
    newest = newest.scatter(1, column, values.to(torch.int64))[:, :count]
    ordered, order = torch.sort(newest, stable=True, dim=1)
    repeats = torch.zeros_like(ordered, dtype=torch.bool)
    repeats[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return newest.masked_fill(torch.zeros_like(repeats).scatter(1, order, repeats), 0)


def expand(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) rows of a ragged table -> for their N entries, position in `rows` and in the table."""
    counts = offsets[rows + 1] - offsets[rows]
    owners = torch.repeat_interleave(counts)
    first = offsets[rows] - (counts.cumsum(0) - counts)
    return owners, first[owners] + torch.arange(owners.size(0), device=rows.device)


class Scorer(nn.Module):
    """Scores of all items by fitted tables.

    A subclass defines the number of interactions it reads and the entries of their items. A session
    without such an interaction is scored by popularity.
    """

    popularity: Tensor
    """(V - 3,) float32"""

    def __init__(self, popularity: Tensor, reads: int, entries_of_session: int) -> None:
        """`reads` is R; `entries_of_session` bounds the entries of one session."""
        super().__init__()
        self.register_buffer("popularity", popularity)
        self.reads = reads
        self.rows_at_once = max(1, _ENTRIES_AT_ONCE // max(1, entries_of_session, len(popularity)))

    def entries(self, newest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, R) `newest_values` -> row, item (0 to V - 4) and float64 score of N entries.

        A score is the sum of the entries of its row and item, 0 without one.
        """
        raise NotImplementedError

    def forward(self, values: Tensor) -> Tensor:
        """(B, L) indices, padded on the right -> (B, V - 3) float32 scores, in catalogue order."""
        parts: list[Tensor] = []
        num_items = self.popularity.size(0)
        for begin in range(0, max(1, values.size(0)), self.rows_at_once):
            newest = newest_values(values[begin : begin + self.rows_at_once], self.reads)
            rows, items, scores = self.entries(newest)
            size = newest.size(0) * num_items
            total = torch.zeros([size], dtype=torch.float64, device=values.device)
            total = total.scatter_add(0, rows * num_items + items, scores)
            # float32, so that sums which differ by their order of addition alone are ties
            by_entries = total.view([newest.size(0), num_items]).to(torch.float32)
            is_read = (newest > 0).any(1, keepdim=True)
            parts.append(torch.where(is_read, by_entries, self.popularity))
        return torch.cat(parts)


class PopularityScorer(Scorer):
    """The same scores for every session."""

    def __init__(self, popularity: Tensor) -> None:
        super().__init__(popularity, 0, 1)

    def entries(self, newest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 0) -> no entries."""
        none = newest.view([-1])
        return none, none, none.to(torch.float64)


class NeighbourScorer(Scorer):
    """Sum over the session's items of the weights of their neighbours.

    `offsets` (rows + 1,), `items` and `weights` are a sparse matrix: the neighbours of each item,
    or of each value of another column. `position_weights` (R,) are float64 factors by distance.
    """

    offsets: Tensor
    items: Tensor
    weights: Tensor
    position_weights: Tensor

    def __init__(
        self,
        popularity: Tensor,
        offsets: Tensor,
        items: Tensor,
        weights: Tensor,
        position_weights: Tensor,
    ) -> None:
        reads = len(position_weights)
        longest = int((offsets[1:] - offsets[:-1]).max()) if len(offsets) > 1 else 0
        super().__init__(popularity, reads, reads * longest)
        self.register_buffer("offsets", offsets)
        self.register_buffer("items", items)
        self.register_buffer("weights", weights)
        self.register_buffer("position_weights", position_weights)

    def entries(self, newest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, R) -> the neighbours of each value."""
        first = 3
        places = (newest > 0).nonzero()
        rows, columns = places[:, 0], places[:, 1]
        owners, index = expand(self.offsets, newest[rows, columns] - first)
        scores = self.position_weights[columns][owners] * self.weights[index].to(torch.float64)
        return rows[owners], self.items[index].to(torch.int64), scores


class SessionKnnScorer(Scorer):
    """Sum of the similarities of the nearest training sessions that hold an item.

    Similarity is the cosine between the session, its items weighted by distance from the end, and a
    training session as a set, without the norm of the session, which is equal for all neighbours.
    Training sessions are oldest first; among equal similarities the newer one is nearer.
    """

    posting_offsets: Tensor
    """(V - 2,) first posting of each item."""
    posting_sessions: Tensor
    """(N,) training sessions that hold the item."""
    posting_positions: Tensor
    """(N,) position of the item in these sessions; empty without `lambda_inh`."""
    session_offsets: Tensor
    """(M + 1,) first item of each training session."""
    session_items: Tensor
    """Distinct items of each training session."""
    session_positions: Tensor
    """Newest position of each of these items; empty without `lambda_inh`."""
    session_factors: Tensor
    """(M,) float64 factor of the similarity."""
    item_factors: Tensor
    """(V - 3,) float64 factor of an item's score."""
    position_weights: Tensor
    """(R,) float64 weight in the similarity, by distance."""
    neighbour_weights: Tensor
    """(R,) float64 factor of a neighbour, by the distance of the newest common item."""

    def __init__(
        self, popularity: Tensor, tables: dict[str, Tensor], k: int, lambda_inh: float
    ) -> None:
        """`tables` are the buffers by name; with `lambda_inh` 0 all items have the same weight."""
        reads = len(tables["position_weights"])
        offsets = tables["posting_offsets"]
        longest = int((offsets[1:] - offsets[:-1]).max()) if len(offsets) > 1 else 0
        sizes = tables["session_offsets"].diff()
        longest_session = int(sizes.max()) if len(sizes) else 0
        super().__init__(popularity, reads, max(reads * longest, k * longest_session))
        for name in SESSION_TABLES:
            self.register_buffer(name, tables[name])
        self.k = k
        self.lambda_inh = lambda_inh

    def entries(self, newest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, R) -> the items of the neighbours."""
        first, num_sessions = 3, max(1, self.session_factors.size(0))
        places = (newest > 0).nonzero()
        rows, columns = places[:, 0], places[:, 1]
        owners, index = expand(self.posting_offsets, newest[rows, columns] - first)
        columns = columns[owners]
        sessions = self.posting_sessions[index].to(torch.int64)
        pairs, inverse = torch._unique2(rows[owners] * num_sessions + sessions, True, True)[:2]
        similarities = torch.zeros(
            pairs.size(0), dtype=torch.float64, device=newest.device
        ).scatter_add(0, inverse, self.position_weights[columns])
        rows, sessions = pairs // num_sessions, pairs % num_sessions
        similarities = similarities * self.session_factors[sessions]
        kept = self.nearest(rows, similarities, newest.size(0))
        # distance of the newest common item
        nearest = torch.full_like(pairs, self.reads).scatter_reduce(0, inverse, columns, "amin")
        values = similarities * self.neighbour_weights[nearest]
        owners2, index2 = expand(self.session_offsets, sessions[kept])
        items = self.session_items[index2].to(torch.int64)
        scores = values[kept][owners2] * self.item_factors[items]
        if self.lambda_inh > 0:
            is_nearest = columns == nearest[inverse]
            positions = torch.zeros_like(pairs)
            positions[inverse[is_nearest]] = self.posting_positions[index[is_nearest]].to(
                torch.int64
            )
            distances = self.session_positions[index2] - positions[kept][owners2]
            scores = scores * torch.exp(-distances.abs().to(torch.float64) / self.lambda_inh)
        return rows[kept][owners2], items, scores

    def nearest(self, rows: Tensor, similarities: Tensor, num_rows: int) -> Tensor:
        """Indices of the k most similar sessions of each row; ties prefer the later index."""
        last_first = torch.arange(rows.size(0) - 1, -1, -1, device=rows.device)
        # float32 for ties, as in `forward`
        rounded = similarities.to(torch.float32)[last_first]
        order = last_first[torch.sort(rounded, stable=True, dim=0, descending=True)[1]]
        order = order[torch.sort(rows[order], stable=True, dim=0)[1]]
        counts = torch.bincount(rows, minlength=num_rows)
        starts = counts.cumsum(0) - counts
        nth = torch.arange(rows.size(0), device=rows.device) - starts[rows[order]]
        return order[nth < self.k]


SESSION_TABLES = (
    *("posting_offsets", "posting_sessions", "posting_positions"),
    *("session_offsets", "session_items", "session_positions", "session_factors"),
    *("item_factors", "position_weights", "neighbour_weights"),
)
"""Buffers of a `SessionKnnScorer` beside `popularity`."""


def first_of_highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, C) float32 -> (B, k) highest scores and their columns; ties in column order.

    Columns of a catalogue are in the order of popularity, so ties are too.
    """
    count = scores.size(1)
    place = torch.arange(count, 0, -1, device=scores.device).to(torch.float64) / count
    wide = scores.to(torch.float64)
    # less than half the gap between adjacent float32 numbers
    keys = wide + (wide.abs() * 2.0**-26 + 1e-60) * place
    keys = torch.where(scores == float("-inf"), wide, keys)
    columns = keys.topk(k)[1]
    return scores.gather(1, columns), columns
