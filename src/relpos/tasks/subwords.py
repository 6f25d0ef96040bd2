"""One vocabulary of subwords for both languages: byte-pair encoding by sentencepiece, learned on training text only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np

from relpos.tasks import cache

PAD, START, END, UNKNOWN = range(4)
_KIND = "sentencepiece bpe, nmt_nfkc, 1"


class Subwords:
    """Text to token numbers and back. Numbers 0 to 3 are PAD, START, END and UNKNOWN; text never gives 0 to 2."""

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def learned(cls, lines: Sequence[str], size: int) -> Subwords:
        """The vocabulary of `lines`, from the cache where it was learned before. size: at most so many numbers.

        A text with fewer possible pieces gives a smaller vocabulary. ValueError where size cannot hold its letters.
        """
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        header = {"kind": _KIND, "text": digest, "size": str(size)}
        arrays = cache.cached(f"subwords-{size}-{digest[:12]}", header, lambda: {"model": _learn(lines, size)})
        return cls(arrays["model"].tobytes())

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def encode(self, lines: Sequence[str]) -> list[np.ndarray]:
        """A (length,) int64 array a line, without START and END."""
        return [np.array(ids, dtype=np.int64) for ids in self._processor.encode(list(lines))]

    def decode(self, rows: Sequence[np.ndarray]) -> list[str]:
        """The text of each row up to its first END."""
        return [self._processor.decode(_until_end(row)) for row in rows]


def _until_end(row: np.ndarray) -> list[int]:
    ids = [int(token) for token in row]
    return ids[: ids.index(END)] if END in ids else ids


def _learn(lines: Sequence[str], size: int) -> np.ndarray:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=size,
            hard_vocab_limit=False, character_coverage=1.0, num_threads=1, minloglevel=2,
            pad_id=PAD, bos_id=START, eos_id=END, unk_id=UNKNOWN,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"no vocabulary of {size} subwords can be made of this text: {error}") from error
    return np.frombuffer(model.getvalue(), dtype=np.uint8)
