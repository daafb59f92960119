from ._answer_labels import AnswerLabels as AnswerLabels
from ._augment_texts import (
    AugmentedTexts as AugmentedTexts,
    augment_texts as augment_texts,
)
from ._augmentation import Augmentation as Augmentation
from ._bucketing import (
    choose_buckets as choose_buckets,
    padded_tokens as padded_tokens,
)
from ._curriculum import curriculum as curriculum
from ._delete_tokens import DeleteTokens as DeleteTokens
from ._demo_assets import (
    demo_model as demo_model,
    demo_pronunciations as demo_pronunciations,
    demo_questions as demo_questions,
    demo_ratings as demo_ratings,
    demo_reviews as demo_reviews,
    demo_tagged_tweets as demo_tagged_tweets,
)
from ._detokenizer import Detokenizer as Detokenizer
from ._join_unlabelled import join_unlabelled as join_unlabelled
from ._length_warmup import length_warmup as length_warmup
from ._masking import Masking as Masking
from ._oversample import oversample as oversample
from ._pack import pack as pack
from ._read_records import read_records as read_records
from ._records import (
    Records as Records,
    require_classes as require_classes,
    split as split,
)
from ._replace_tokens import ReplaceTokens as ReplaceTokens
from ._select_to_label import select_to_label as select_to_label
from ._shuffle_tokens import ShuffleTokens as ShuffleTokens
from ._target_texts import TargetTexts as TargetTexts
from ._text import text as text
from ._text_stats import TextStats as TextStats
from ._token_labels import TokenLabels as TokenLabels
from ._tokenize_to_disk import tokenize_to_disk as tokenize_to_disk
from ._tokenized_texts import TokenizedTexts as TokenizedTexts
from ._tokenizer import (
    HUGGING_FACE as HUGGING_FACE,
    KERASHUB as KERASHUB,
    MASK_POSITIONS as MASK_POSITIONS,
    Tokenizer as Tokenizer,
    as_tokenizer as as_tokenizer,
)
from ._train_tokenizer import train_tokenizer as train_tokenizer
from ._trim_vocabulary import (
    TrimmedVocabulary as TrimmedVocabulary,
    trim_vocabulary as trim_vocabulary,
)
