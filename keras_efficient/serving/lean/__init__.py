"""How layers compute in an export: with int8 or bfloat16 weights, in as few operations as may be.

For as long as a model is written, parts stand in for what its layers do (see `standing_in`); the
layers' own classes and weights stay as they are.
"""
