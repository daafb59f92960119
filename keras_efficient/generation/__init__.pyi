from ._generate import (
    Generated as Generated,
    generate as generate,
)
from ._strategies import (
    Beam as Beam,
    Greedy as Greedy,
    Sample as Sample,
)
