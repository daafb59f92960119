from ._classification import Classification as Classification
from ._multi_label import MultiLabel as MultiLabel
from ._question_answering import QuestionAnswering as QuestionAnswering
from ._registry import (
    get as get,
    names as names,
    register as register,
)
from ._regression import Regression as Regression
from ._task import Task as Task
from ._token_classification import TokenClassification as TokenClassification
