from ._causal_lm import CausalLM as CausalLM
from ._classification import Classification as Classification
from ._language_model import LanguageModel as LanguageModel
from ._masked_lm import MaskedLM as MaskedLM
from ._multi_label import MultiLabel as MultiLabel
from ._question_answering import QuestionAnswering as QuestionAnswering
from ._registry import (
    get as get,
    names as names,
    register as register,
)
from ._regression import Regression as Regression
from ._sentence_embedding import SentenceEmbedding as SentenceEmbedding
from ._seq2seq import Seq2Seq as Seq2Seq
from ._task import Task as Task
from ._token_classification import TokenClassification as TokenClassification
