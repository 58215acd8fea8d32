"""Pool the features of many seeds into one SAE, and judge it beside its controls."""

from saefast.pool.features import pool_features
from saefast.pool.study import PoolingStudy, evaluate_pooling

__all__ = [
    "PoolingStudy",
    "evaluate_pooling",
    "pool_features",
]
