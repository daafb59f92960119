"""Puts `tests/` on the path, for `zoo`, `training` and `bert_folder`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
