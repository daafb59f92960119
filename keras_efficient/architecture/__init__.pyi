from ._describe import describe as describe
from ._description import (
    Architecture as Architecture,
    Block as Block,
    BlockInputs as BlockInputs,
    FeedForward as FeedForward,
    SelfAttention as SelfAttention,
)
