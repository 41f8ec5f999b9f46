"""TokenPool, the layer that pools the tokens of a vision transformer."""

from .results import PoolInfo as PoolInfo
from .results import Pooling as Pooling
from .results import with_prefix as with_prefix
from .token_pool import TokenPool as TokenPool
