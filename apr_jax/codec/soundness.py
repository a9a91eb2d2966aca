"""Is what an `.apr` file holds a model that can be computed? Its tensors against its claims."""

import dataclasses
import math

from apr_jax.codec import claims, head
from apr_jax.codec.checkpoint import Checkpoint
from apr_jax.codec.errors import AprError, IncompleteModel, ParameterClaim
from apr_jax.codec.fields import ConfigError
from apr_jax.codec.qwen2 import HF_CLASSES, Coverage
from apr_jax.codec.reader import AprFile
from apr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Soundness:
    """What was found.

    Attributes:
      architecture: what the file says it is, or else what its tensors are; None if neither is one
        of the supported two. Then nothing more is asked of it.
      coverage: the tensors against the configuration, None where that cannot be read.
      faults: what keeps the file from being a sound model, as exceptions that were not raised.
    """

    architecture: str | None
    coverage: Coverage | None
    faults: tuple[UserError, ...]


def examine(file: AprFile) -> Soundness:
    """Hold an open file against the architecture that it claims."""
    claim = file.metadata.get("architecture") or file.metadata.get("hf_model_type")
    architecture = claim or claims.family_of(file.names)
    if architecture not in HF_CLASSES:
        return Soundness(None, None, ())
    try:
        checkpoint = Checkpoint(file)
    except (AprError, ConfigError) as error:
        return Soundness(architecture, None, (error,))
    return Soundness(architecture, checkpoint.coverage(), tuple(_faults(file, checkpoint)))


def _faults(file: AprFile, checkpoint: Checkpoint) -> list[UserError]:
    faults: list[UserError] = []
    try:
        checkpoint.require_complete()
    except IncompleteModel as error:
        faults.append(error)
    # With a name too many or too few, no count of parameters can be right.
    if not faults and (wrong := _parameter_claim(file, checkpoint)):
        faults.append(wrong)
    return [*faults, *head.oddities(file, checkpoint.config.tied)]


def _parameter_claim(file: AprFile, checkpoint: Checkpoint) -> AprError | None:
    """Some writers leave the count at 0, others count the entry of a tied head."""
    claim, needed = file.metadata["param_count"], checkpoint.config.num_parameters()
    stored = sum(math.prod(file.info(name).shape) for name in file.names)
    if claim in (0, needed, stored):
        return None
    return ParameterClaim(
        file.path, f"metadata has param_count={claim:,}, the model has {needed:,}"
    )
