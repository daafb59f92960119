"""Generation against plain Python: strategies, states, given tokens, exported graphs."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.generation import Beam, Greedy, Sample, generate

VOCABULARY, END, UNITS = 7, 1, 5
rng = np.random.default_rng(0)
EMBEDDED = rng.normal(size=(VOCABULARY, UNITS)).astype("float32")
RECURRENT = rng.normal(size=(UNITS, UNITS)).astype("float32")
OUTPUT = rng.normal(size=(UNITS, VOCABULARY)).astype("float32") * 1.5


def step(ids, index, state):
    """A recurrent language model whose state also depends on the position."""
    hidden = tf.tanh(tf.gather(EMBEDDED, ids) + state["hidden"] @ RECURRENT)
    hidden += 0.1 * tf.cast(index, tf.float32)
    return hidden @ OUTPUT, {"hidden": hidden}


def log_probabilities(tokens, first):
    """Return the log-probabilities of the token that follows `tokens`, in NumPy."""
    hidden = first.astype("float64")
    for index, token in enumerate(tokens):
        hidden = np.tanh(EMBEDDED[token] + hidden @ RECURRENT) + 0.1 * index
    logits = hidden @ OUTPUT
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def greedy(given, first, max_tokens):
    tokens, score = list(given), 0.0
    while len(tokens) < len(given) + max_tokens and (
        len(tokens) == len(given) or tokens[-1] != END
    ):
        gained = log_probabilities(tokens, first)
        tokens.append(int(gained.argmax()))
        score += gained.max()
    return tokens, score


def searched(given, first, max_tokens, width, penalty):
    """Beam search with lists."""
    alive, done = [(0.0, list(given))], []
    for _ in range(max_tokens):
        extended = [
            (score + gained, [*tokens, token])
            for score, tokens in alive
            for token, gained in enumerate(log_probabilities(tokens, first))
        ]
        extended = sorted(extended, key=lambda pair: -pair[0])[: 2 * width]
        done += [pair for pair in extended if pair[1][-1] == END]
        alive = [pair for pair in extended if pair[1][-1] != END][:width]
    return best_of(done or alive, len(given), penalty)


def exhaustive(given, first, max_tokens, penalty):
    """The best of all sequences."""
    done = []
    for count in range(1, max_tokens + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=count):
            if tokens[-1] == END and END not in tokens[:-1]:
                whole = [*given, *tokens]
                score = sum(
                    log_probabilities(whole[:i], first)[whole[i]]
                    for i in range(len(given), len(whole))
                )
                done.append((score, whole))
    return best_of(done, len(given), penalty)


def best_of(pairs, given, penalty):
    score, tokens = max(pairs, key=lambda pair: pair[0] / (len(pair[1]) - given) ** penalty)
    return tokens, score


STATE = {"hidden": rng.normal(size=(4, UNITS)).astype("float32")}
GIVEN = np.array([[2, 3, 0], [4, 0, 0], [5, 6, 2], [3, 3, 0]])
LENGTHS = np.array([2, 1, 3, 2])


def run(strategy, max_tokens, **options):
    generated = generate(
        step, STATE, GIVEN, lengths=LENGTHS, max_tokens=max_tokens, end_id=END, strategy=strategy
    )
    ids, lengths, scores = (tensor.numpy() for tensor in generated)
    assert ids.shape == (4, 3 + max_tokens) and ids.dtype == lengths.dtype == "int32"
    for row, length in zip(ids, lengths, strict=True):
        assert (row[length:] == 0).all()
    found = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    return found, scores


def compare(found, expected):
    assert found[0] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose(found[1], [score for _, score in expected], rtol=1e-5, atol=1e-6)


def rows():
    return zip(GIVEN, LENGTHS, STATE["hidden"], strict=True)


def test_greedy_takes_the_most_probable_token_of_each_row():
    compare(run(Greedy(), 9), [greedy(ids[:n].tolist(), first, 9) for ids, n, first in rows()])


@pytest.mark.parametrize(("width", "penalty"), [(1, 1.0), (3, 0.0), (3, 1.0), (3, -0.5), (9, 2.0)])
def test_beam_search_equals_a_search_with_lists(width, penalty):
    for max_tokens in (1, 8):
        expected = [
            searched(ids[:n].tolist(), first, max_tokens, width, penalty)
            for ids, n, first in rows()
        ]
        compare(run(Beam(width, penalty), max_tokens), expected)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(penalty):
    found = run(Beam(300, penalty), 4)
    compare(found, [exhaustive(ids[:n].tolist(), first, 4, penalty) for ids, n, first in rows()])


def test_samples_are_drawn_from_the_most_probable_tokens():
    logits = np.array([[2.0, 1.0, 0.0, -1.0, 1.5]], "float32")
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()

    def drawn(**options):
        strategy = Sample(**options)
        rows = np.repeat(logits, 4000, axis=0)
        tokens = strategy.choose(tf.constant(rows), tf.constant(0)).numpy()
        return np.bincount(tokens, minlength=5) / len(tokens)

    def check(found, weights):
        expected = np.array(weights) / sum(weights)
        error = 4 * np.sqrt(expected * (1 - expected) / 4000)
        assert (np.abs(found - expected) <= error).all()

    check(drawn(), probabilities)
    check(drawn(temperature=0.5), probabilities**2)
    check(drawn(top_k=2), probabilities * [1, 0, 0, 0, 1])
    # The three most probable add up to 0.87, and two of them to 0.68.
    check(drawn(top_p=0.8), probabilities * [1, 1, 0, 0, 1])
    check(drawn(top_k=3, top_p=0.7), probabilities * [1, 0, 0, 0, 1])
    check(drawn(top_p=1e-6), [1, 0, 0, 0, 0])


def test_the_same_seed_draws_the_same_sequences():
    first = run(Sample(seed=3), 9)
    assert first[0] == run(Sample(seed=tf.constant(3)), 9)[0] != run(Sample(seed=4), 9)[0]
    for tokens, (ids, n, hidden), score in zip(first[0], rows(), first[1], strict=True):
        assert tokens[:n] == ids[:n].tolist() and tokens[n:].count(END) <= 1
        gained = [log_probabilities(tokens[:i], hidden)[tokens[i]] for i in range(n, len(tokens))]
        assert math.isclose(sum(gained), score, rel_tol=1e-5)


def test_a_step_that_ignores_the_state_needs_none():
    def count(ids, index, state):
        return tf.one_hot(ids + 1, 9) * 10, state

    for strategy in (Greedy(), Beam(2)):
        found = generate(count, (), [[2, 3], [6, 7]], max_tokens=3, end_id=8, strategy=strategy)
        assert found.ids.numpy().tolist() == [[2, 3, 4, 5, 6], [6, 7, 8, 0, 0]]
        assert found.lengths.numpy().tolist() == [5, 3]


@pytest.mark.parametrize("strategy", [Greedy(), Beam(3), Sample(top_k=4, top_p=0.9)])
def test_an_exported_loop_generates_the_same(strategy, tmp_path):
    class Model(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([None, UNITS]),
            ]
        )
        def run(self, ids, lengths, hidden):
            state = {"hidden": hidden}
            options = {"max_tokens": 6, "end_id": END, "strategy": strategy}
            return generate(step, state, ids, lengths=lengths, **options)._asdict()

    model = Model()
    arguments = tf.constant(GIVEN, tf.int32), tf.constant(LENGTHS, tf.int32), STATE["hidden"]
    tf.saved_model.save(model, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path)).run(*arguments)
    found, scores = run(strategy, 6)
    columns = loaded["ids"].numpy(), loaded["lengths"].numpy()
    assert [ids[:n].tolist() for ids, n in zip(*columns, strict=True)] == found
    np.testing.assert_array_equal(loaded["scores"], scores)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sample(temperature=0), "`temperature` must be a number above 0. Received: 0"),
        (lambda: Sample(top_k=0), "`top_k` must be a number of tokens. Received: 0"),
        (lambda: Sample(top_p=1.5), "`top_p` must be above 0 and at most 1. Received: 1.5"),
        (lambda: Beam(0), "`width` must be a number of sequences. Received: 0"),
        (lambda: Beam(2, math.nan), "`length_penalty` must be a number. Received: nan"),
        (lambda: run(Greedy(), 0), "`max_tokens` must be a number of tokens. Received: 0"),
        (lambda: run("beam", 3), r"`strategy` must be .* Received: 'beam'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
