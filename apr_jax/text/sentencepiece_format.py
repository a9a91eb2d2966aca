"""SentencePiece models, encoded by the `sentencepiece` library itself."""

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from apr_jax.text.tokenizer import as_texts, known_ids, lone_surrogate
from apr_jax.text.vocabulary import TokenizerError


class SentencePieceTokenizer:
    """A SentencePiece model with the interface of `Tokenizer`; ids are the library's.

    Nothing is added to a text's ids: no BOS, no EOS. Normalisation is the model's own; many models
    drop spaces or put one in front, so `decode` need not give the text back to the byte.

    Attributes:
      model: the model file's bytes.
      format: "sentencepiece".
      vocab_size: the number of pieces.
      normalization: "sentencepiece": what the model says.
      eos_id, unk_id: as in the model, or None.
      sha256: hash of the model.
    """

    format = normalization = "sentencepiece"

    def __init__(self, model: bytes, source: object) -> None:
        """Load the bytes of a model file; `source` names it in errors."""
        self.model, self._source = model, str(source)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            size = self._processor.get_piece_size() if model else 0
            self._pieces = self._processor.id_to_piece(list(range(size)))
        except (RuntimeError, UnicodeDecodeError) as error:
            raise TokenizerError(
                f"{source}: is no SentencePiece model ({error}): copy it again"
            ) from error
        if not self._pieces:
            raise TokenizerError(f"{source}: is a SentencePiece model of no pieces: copy it again")
        self.vocab_size = len(self._pieces)
        self.eos_id = _known(self._processor.eos_id())
        self.unk_id = _known(self._processor.unk_id())
        self.sha256 = hashlib.sha256(model).hexdigest()

    def compile(self, *, merges: bool = True) -> None:
        """Nothing: the library is compiled."""

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]: the ids of the text. Raises as that of `Tokenizer` does."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32. Raises as that of `Tokenizer` does."""
        return [np.array(ids, np.int32) for ids in self._encode(texts)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As that of `Tokenizer`: the ids of all texts, and where each text's begin and end."""
        encoded = self._encode(texts)
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return np.fromiter(itertools.chain.from_iterable(encoded), np.int32), offsets

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        texts = as_texts(texts)
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise lone_surrogate(texts) from error
        return self._processor.encode(texts, out_type=int, num_threads=1)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids by the library's rules; ids beyond the pieces stand for no text.

        Raises:
          TextError: an id is negative.
          TypeError: the ids are no integers in one row.
        """
        return self._processor.decode(known_ids(ids, self.vocab_size))

    def token_id(self, content: str) -> int | None:
        """The id of the control or user-defined piece of this spelling, None if there is none."""
        id_ = self._processor.piece_to_id(content)
        same = self._pieces[id_] == content
        return id_ if same and self._processor.is_control(id_) else None

    def piece(self, id_: int) -> str:
        """How the model spells this id."""
        return self._pieces[id_]

    def token_bytes(self) -> np.ndarray:
        """uint16 [vocab_size]: bytes of text that each id stands for; 0 for control and unknown.

        A space that the model puts in front of a text counts as its byte.
        """
        return self._token_bytes.copy()

    @functools.cached_property
    def _token_bytes(self) -> np.ndarray:
        processor = self._processor
        sizes = [
            0
            if processor.is_control(id_) or processor.is_unknown(id_)
            else 1
            if processor.is_byte(id_)
            else len(piece.replace("\u2581", " ").encode())
            for id_, piece in enumerate(self._pieces)
        ]
        return np.array(sizes, np.uint16)

    def __reduce__(self) -> tuple[type, tuple[bytes, str]]:
        return SentencePieceTokenizer, (self.model, self._source)


def read_sentencepiece(path: pathlib.Path) -> SentencePieceTokenizer:
    """The model in a file. Raises TokenizerError when it is none."""
    return SentencePieceTokenizer(path.read_bytes(), path)


def _known(id_: int) -> int | None:
    return id_ if id_ >= 0 else None
