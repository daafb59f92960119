from ._classification_report import (
    ClassificationReport as ClassificationReport,
    classification_report as classification_report,
)
from ._evaluate_classifier import evaluate_classifier as evaluate_classifier
from ._macro_f1 import macro_f1 as macro_f1
from ._scores import predicted_classes as predicted_classes, scores_of as scores_of
