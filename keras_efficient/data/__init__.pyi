from ._bucketing import (
    choose_buckets as choose_buckets,
)
from ._bucketing import (
    padded_tokens as padded_tokens,
)
from ._read_records import read_records as read_records
from ._records import (
    Records as Records,
)
from ._records import (
    require_classes as require_classes,
)
from ._records import (
    split as split,
)
from ._text import text as text
from ._text_stats import TextStats as TextStats
from ._tokenizer import (
    HUGGING_FACE as HUGGING_FACE,
)
from ._tokenizer import (
    KERASHUB as KERASHUB,
)
from ._tokenizer import (
    Tokenizer as Tokenizer,
)
from ._tokenizer import (
    as_tokenizer as as_tokenizer,
)
