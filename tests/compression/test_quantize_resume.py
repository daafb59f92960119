"""A resumed run with quantization equals the uninterrupted one bit for bit."""

import sys
from pathlib import Path

from covering import contract

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))

from compression_helpers import mostly
from resumed_runs import Case, assert_goes_on

import keras_efficient as ke


def quantized(model):
    ke.quantize_aware(model, begin_step=3)
    ke.accumulate(model, microbatch_size=3)
    return model


@contract("resume")
@mostly("tf_keras")
def test_a_resumed_run_has_its_ranges_and_its_count_again(library, tmp_path):
    case = Case(library, quantized)
    whole = case.start(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "stopped", (1, 1), whole)
