from ._check_export import check_export as check_export
from ._destination import check_destination as check_destination
from ._evaluation import Evaluation as Evaluation
from ._export import export as export
from ._export_fastest import export_fastest as export_fastest
from ._export_report import ExportReport as ExportReport
from ._html_report import write_html_report as write_html_report
from ._keras_export import keras_export as keras_export
from ._manifest import write_manifest as write_manifest
from ._model_file import ModelFile as ModelFile
from ._signature import Features as Features
from ._warmup import write_warmup as write_warmup
from .litert.converter import write_litert as write_litert
from .litert.export import export_litert as export_litert
from .litert.interpreter import run_litert as run_litert
from .onnx.export import export_onnx as export_onnx
from .onnx.session import run_onnx as run_onnx
from .tokenizer_ops.text_tokenizer import (
    TextTokenizer as TextTokenizer,
    text_function as text_function,
)
