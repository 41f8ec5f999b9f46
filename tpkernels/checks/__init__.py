"""Checks of public functions' arguments; every message names the argument, what was expected and what was given."""

from .clustering import backend as backend
from .clustering import clusters_wanted as clusters_wanted
from .clustering import cut as cut
from .clustering import init_indices as init_indices
from .clustering import resolve_init as resolve_init
from .clustering import resolve_refine as resolve_refine
from .clustering import ward_fits as ward_fits
from .tensors import centers as centers
from .tensors import clusters as clusters
from .tensors import heads as heads
from .tensors import label_range as label_range
from .tensors import labels as labels
from .tensors import labels_over as labels_over
from .tensors import like_tokens as like_tokens
from .tensors import mask as mask
from .tensors import metric as metric
from .tensors import per_token as per_token
from .tensors import same_device as same_device
from .tensors import tokens as tokens
from .values import count as count
from .values import flag as flag
from .values import grid_size as grid_size
from .values import integer as integer
from .values import one_of as one_of
from .values import scale as scale
