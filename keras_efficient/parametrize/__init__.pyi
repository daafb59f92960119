from ._attach import (
    attach as attach,
    detach as detach,
)
from ._merge import (
    MergeReport as MergeReport,
    merge as merge,
)
from ._plain_model import folded_weights as folded_weights
from ._select import (
    Weight as Weight,
    select as select,
)
from ._summary import (
    Summary as Summary,
    WeightSummary as WeightSummary,
    summary as summary,
)
from ._transform import Transform as Transform
