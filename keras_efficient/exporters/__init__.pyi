from ._evaluation import Evaluation as Evaluation
from ._export import export as export
from ._export_report import ExportReport as ExportReport
from ._html_report import write_html_report as write_html_report
from .tokenizer_ops.text_tokenizer import TextTokenizer as TextTokenizer
