"""One exception class per defect of a checkpoint; each message is one line: where, what, the fix.

The kinds under `AprError` carry the names that the format's reference reader gives its errors, so
that a refusal here and a refusal there say the same thing. An `Oddity` does not keep a file from
opening: the reader lists it, unraised, in `.problems`, and raises it when asked to be strict.
"""

import os
import typing

from apr_jax.errors import UserError, short

if typing.TYPE_CHECKING:
    from apr_jax.codec.qwen2 import Coverage


class AprError(UserError):
    """Base of everything that the codec refuses.

    Attributes:
      path: the file or folder at fault.
      tensor: name of the tensor at fault, or None.
      offset: byte of the file where the defect lies, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        message: str,
        *,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        where = os.fspath(path)
        where += f": tensor {short(repr(tensor))}" if tensor is not None else ""
        where += f" at byte {offset:,}" if offset is not None else ""
        super().__init__(f"{where}: {message}")
        self.path, self.tensor, self.offset = os.fspath(path), tensor, offset


class Unreadable(AprError):
    """The operating system does not let the file be read."""


class InvalidHeader(AprError):
    """The 64 bytes at the start, or what they point to, cannot be right."""


class FileTooShort(InvalidHeader):
    """Fewer bytes than a header has."""


class ColumnMajor(InvalidHeader):
    """The flags say that matrices lie column by column, which no correct writer produces."""


class MetadataOutOfFile(InvalidHeader):
    """The metadata reaches past the end of the file."""


class InvalidMagic(AprError):
    """The file does not start with the four bytes of APR v2."""


class ChecksumMismatch(AprError):
    """The header's CRC32 is not the one that it holds."""


class MetadataError(AprError):
    """The metadata is not the JSON object that it must be, or a known key has a wrong type."""


class InvalidTensorIndex(AprError):
    """The list of tensors cannot be read."""


class IndexOutOfFile(InvalidTensorIndex):
    """The list of tensors, or one of its entries, reaches past the end of the file."""


class UnknownDtype(InvalidTensorIndex):
    """An entry has a type code that the format does not know."""


class UnsortedIndex(InvalidTensorIndex):
    """The names do not ascend."""


class Oddity(AprError):
    """Base of what is wrong with a file that can be opened all the same."""


class OddVersion(Oddity):
    """The version is not 2.0."""


class MisleadingFlags(Oddity):
    """The flags claim compression or encryption, but the file is plain."""


class MetadataAlias(Oddity):
    """A key stands beside another spelling of itself; another reader then drops all metadata."""


class DuplicateName(Oddity):
    """Two tensors have one name."""


class UnsafeName(Oddity):
    """A name is empty, or has control characters, undecodable bytes or steps out of a folder."""


class SizeMismatch(Oddity):
    """A tensor's bytes are not as many as its shape and type need."""


class Misaligned(Oddity):
    """A tensor does not start at a multiple of 64 bytes."""


class Overlap(Oddity):
    """Two parts of the file share bytes."""


class TensorOutOfFile(Oddity):
    """A tensor's bytes reach past the end of the file."""


class TruncatedFile(Oddity):
    """The file ends before the last section does, though no tensor loses bytes."""


class FooterMissing(Oddity):
    """The CRC32 after the last tensor is not there."""


class FooterMismatch(Oddity):
    """The CRC32 at the end is not that of the bytes before it: some of them have changed."""


class HeadClaim(Oddity):
    """The metadata says that the head is tied to the embedding, the tensors say otherwise."""


class ArchitectureClaim(Oddity):
    """Two entries of the metadata name different architectures, or different numbers for one."""


class Mislabelled(Oddity):
    """A tensor is tagged F16 but holds BF16, or the other way round."""

    def __init__(self, path: str | os.PathLike[str], why: str, *, tensor: str | None) -> None:
        super().__init__(path, why, tensor=tensor)
        self.why = why


class NoSuchTensor(AprError, KeyError):
    """The file has no tensor of that name."""

    __str__ = Exception.__str__


class ClosedError(AprError):
    """The file was closed before the tensor was asked for."""


class ShapeTooLarge(AprError):
    """NumPy cannot represent the shape."""


class UnsupportedDtype(AprError):
    """The array's type has no code in the format."""


class OutOfRange(AprError):
    """A value is not finite, or too large, for the type that it was to be stored in."""


class NameTooLong(AprError):
    """A name has more than 256 bytes."""


class RankTooHigh(AprError):
    """An array has more than eight axes."""


class TensorNotDeclared(AprError):
    """A tensor was added that is not the one declared to the writer."""


class TensorsMissing(AprError):
    """A writer was closed before all declared tensors were added."""


class UnknownFormat(AprError):
    """The path is not a checkpoint of a kind that can be read, or not one of this step's kind."""


class InvalidSafetensors(AprError):
    """A safetensors file is damaged, or does not hold what the index says."""


class InvalidGguf(AprError):
    """A GGUF file is damaged, or holds what no writer of the format produces."""


class InvalidJson(AprError):
    """A JSON file of a HuggingFace folder is not an object."""


class ShardIndexError(AprError):
    """`model.safetensors.index.json` is malformed, or names a file outside its folder."""


class HeadError(AprError):
    """The head contradicts the configuration, or is a placeholder for an embedding without data."""


class IncompleteModel(AprError):
    """Tensors are missing, left over, or of another shape than the configuration needs.

    Attributes:
      coverage: all of them; the message names the first of each kind.
    """

    def __init__(self, path: str | os.PathLike[str], message: str, *, coverage: "Coverage") -> None:
        super().__init__(path, message)
        self.coverage = coverage


class ParameterClaim(AprError):
    """The metadata gives another number of parameters than the model has."""


class VerificationFailed(AprError):
    """What was written does not read back as what was meant."""


class FolderInUse(AprError):
    """The output folder holds files that an earlier export did not write."""


class TokenizerLeftOut(AprError):
    """A vocabulary cannot be put into another format without guessing how it cuts text."""
