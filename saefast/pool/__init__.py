"""Pooling of the features of several seeds into one SAE, and its comparison with controls."""

from saefast.pool.features import pool_features
from saefast.pool.results import PoolingStudy
from saefast.pool.study import evaluate_pooling

__all__ = [
    "PoolingStudy",
    "evaluate_pooling",
    "pool_features",
]
