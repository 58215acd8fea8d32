"""Activations of a language model that are computed on demand, without a store."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.protocol import check_dtype
from saefast.activations.shuffled import Held, Shuffled
from saefast.lm.builtin_corpus import or_builtin
from saefast.lm.corpus import Corpus, Texts
from saefast.lm.model import LanguageModel, check_context, check_model
from saefast.lm.packing import Packing, TokenBatch
from saefast.lm.padded import BatchCapture
from saefast.lm.sites import capture, find_sites
from saefast.progress import ProgressBar

_WINDOW_ROWS = 32768
_WINDOW_BYTES = 256 << 20


class LMActivations(Shuffled):
    """Activations for `train_saes` without a store: every epoch runs the model again.

    Rows and their numbers are those that `harvest` writes with the same arguments. The whole text
    is tokenized at the beginning and kept, 5 bytes per token, so that contexts come in a new order
    every epoch, and a resumed training computes only rows that it has not used. For trainings of
    many epochs, or of a billion tokens, a store is preferable.

    Batches lie on the device of the model. A training on the same device uses them there, and the
    model computes the next ones on its own stream, concurrently with the steps.

    Args:
        model: model from `load_model`.
        site: site as in `harvest`.
        target: site that a transcoder reconstructs; None: `site` itself.
        tokens: number of rows in an epoch; None: all tokens of the corpus.
        corpus: see `harvest`.
        context: see `harvest`.
        batch_size: see `harvest`.
        drop_bos: see `harvest`.
        packed: see `harvest`.
        prepend_bos: see `harvest`.
        window_rows: number of rows that are computed, held in memory and shuffled together; None:
            32768 rows, at most 256 MiB.
        dtype: dtype of the batches.
        progress: show a progress bar on stderr while the text is tokenized.
    """

    def __init__(
        self,
        model: LanguageModel,
        site: int | str,
        *,
        target: int | str | None = None,
        tokens: int | None = None,
        corpus: Texts | None = None,
        context: int = 256,
        batch_size: int = 16,
        drop_bos: bool = True,
        packed: bool = True,
        prepend_bos: bool | None = None,
        window_rows: int | None = None,
        dtype: torch.dtype = torch.float32,
        progress: bool = True,
    ):
        check_model(model)
        check_dtype(dtype)
        self._model = model
        self._sites = find_sites(model.model, [site] if target is None else [site, target])
        self._captured = BatchCapture(model, self._sites)
        packing = Packing(context, batch_size, drop_bos, packed, prepend_bos)
        check_context(model, context)
        if tokens is not None:
            checks.whole("tokens", tokens, 1)
        self._batches_of_tokens = _tokenized(model, or_builtin(corpus), packing, tokens, progress)
        self._ends = list(accumulate(int(batch.kept.sum()) for batch in self._batches_of_tokens))
        rows = self._ends[-1] if self._ends else 0
        if rows < (tokens or 1):
            raise ValueError(
                f"corpus has only {rows} tokens, but {tokens or 'at least one'} were requested; "
                f"request fewer, or use more text"
            )
        ids = torch.zeros(2, 2, dtype=torch.int64)
        widths = [seen.shape[2] for seen in capture(model.model, self._sites, ids)]
        if window_rows is None:
            window_rows = min(_WINDOW_ROWS, _WINDOW_BYTES // (sum(widths) * dtype.itemsize))
        checks.whole("window_rows", window_rows, 1)
        super().__init__(
            rows=tokens or rows,
            d=widths[0],
            dtype=dtype,
            # A block is one forward pass, so that none is run for a part of its rows.
            block_rows=max(1, self._ends[0]),
            window_rows=window_rows,
        )

    def locate(self, row: int) -> str:
        """See `Activations.locate`."""
        number = bisect_right(self._ends, row)
        batch = self._batches_of_tokens[number]
        place = batch.kept.nonzero()[row - self._begin(number)]
        context = sum(len(b.ids) for b in self._batches_of_tokens[:number]) + int(place[0])
        return f"{self._sites[0].name} of {self._model.name}, context {context}, token {place[1]}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens and of the identity of the model and the sites."""
        described = [self._model.description, [site.name for site in self._sites], self.rows]
        digest = hashlib.sha256(json.dumps(described).encode())
        for batch in self._batches_of_tokens:
            digest.update(batch.ids.numpy().tobytes())
            digest.update(batch.kept.numpy().tobytes())
        return f"lm:{digest.hexdigest()[:32]}"

    def _reader(self) -> Callable[[list[tuple[int, int]]], Held]:
        def read(spans: list[tuple[int, int]]) -> Held:
            pieces = [piece for span in spans for piece in self._run(*span)]
            columns = [torch.cat(column) for column in zip(*pieces, strict=True)]
            return columns[0], columns[1] if len(columns) > 1 else None

        return read

    def _run(self, first: int, end: int) -> list[list[Tensor]]:
        """Return the rows [first, end) in pieces, from the forward passes that harvest runs."""
        pieces = []
        for number in range(bisect_right(self._ends, first), len(self._ends)):
            begin = self._begin(number)
            if begin >= end:
                break
            batch = self._batches_of_tokens[number]
            seen = self._captured(batch)
            # The host knows the kept positions, so it need not wait for the device.
            kept = batch.kept.flatten().nonzero().flatten()[max(0, first - begin) : end - begin]
            pieces.append([x.flatten(0, 1).index_select(0, kept.to(x.device)) for x in seen])
        return pieces

    def _begin(self, number: int) -> int:
        return self._ends[number - 1] if number else 0


def _tokenized(
    model: LanguageModel, corpus: Corpus, packing: Packing, tokens: int | None, progress: bool
) -> list[TokenBatch]:
    """Return the batches of the corpus that hold the first `tokens` rows."""
    batches: list[TokenBatch] = []
    rows = 0
    with ProgressBar("tokenize", total=tokens, unit="tokens", progress=progress) as bar:
        for batch in packing.batches(corpus, model.tokenizer):
            batches.append(batch._replace(ids=batch.ids.to(torch.int32)))
            kept = int(batch.kept.sum())
            rows += kept
            bar.update(kept)
            if tokens is not None and rows >= tokens:
                break
    return batches
