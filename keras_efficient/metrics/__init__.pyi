from ._answer_report import (
    AnswerReport as AnswerReport,
    answer_report as answer_report,
)
from ._classification_report import (
    ClassificationReport as ClassificationReport,
    classification_report as classification_report,
)
from ._embedding_report import (
    EmbeddingReport as EmbeddingReport,
    embedding_report as embedding_report,
)
from ._entity_f1 import entity_f1 as entity_f1
from ._entity_report import (
    EntityReport as EntityReport,
    entity_report as entity_report,
)
from ._evaluate_classifier import evaluate_classifier as evaluate_classifier
from ._generation_report import (
    GenerationReport as GenerationReport,
    generation_report as generation_report,
)
from ._language_model_report import (
    LanguageModelReport as LanguageModelReport,
    language_model_report as language_model_report,
)
from ._macro_f1 import macro_f1 as macro_f1
from ._multi_label_f1 import multi_label_f1 as multi_label_f1
from ._multi_label_report import (
    MultiLabelReport as MultiLabelReport,
    multi_label_report as multi_label_report,
)
from ._perplexity import perplexity as perplexity
from ._regression_report import (
    RegressionReport as RegressionReport,
    regression_report as regression_report,
)
from ._scores import predicted_classes as predicted_classes, scores_of as scores_of
from ._task_report import TaskReport as TaskReport
