from ._architecture import Architecture as Architecture
from ._describe import describe as describe
from ._description import (
    Block as Block,
    BlockInputs as BlockInputs,
    FeedForward as FeedForward,
    SelfAttention as SelfAttention,
)
from ._embeddings import Embeddings as Embeddings
