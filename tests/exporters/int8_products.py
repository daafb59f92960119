"""Whether this CPU multiplies int8 exactly, for tests that compare such products."""

import pytest

from keras_efficient._errors import InputError
from keras_efficient.exporters.inference_ops.matmul import check_machine


def _exact():
    try:
        check_machine()
    except InputError:
        return False
    return True


EXACT = _exact()
needs_exact_int8 = pytest.mark.skipif(
    not EXACT, reason="int8 products need a CPU with exact ones, such as with AVX-512 VNNI"
)
INT8 = pytest.param("int8", marks=needs_exact_int8, id="int8")
