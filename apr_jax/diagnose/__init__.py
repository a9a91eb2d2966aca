"""Diagnosis: a checkpoint and a reference in; what is wrong, and where, out."""

from apr_jax.diagnose.crosscheck import crosscheck
from apr_jax.diagnose.faults import Fault
