"""Beam search in one `tf.while_loop`."""

import tensorflow as tf

from keras_efficient.generation._strategies import NEVER


def beam_search(step, state, ids, lengths, max_tokens, end_id, pad_id, strategy):
    """Return ids, lengths and scores of the best sequence of each example.

    The arguments are those of `generate`, with space for `max_tokens` in `ids`. `alive` sequences
    can be continued; `done` ones have ended, and are the best so far for each example.
    """
    width, penalty = strategy.width, strategy.length_penalty
    batch, total = tf.unstack(tf.shape(ids))
    columns = tf.range(total)
    examples = tf.range(batch)[:, None]

    def normalised(scores, ends):
        """Divide log-probabilities by a power of the number of generated tokens."""
        return scores / tf.cast(tf.maximum(ends - lengths[:, None], 1), tf.float32) ** penalty

    def body(index, alive, alive_scores, done, done_scores, done_values, done_ends, state):
        logits, new = step(tf.reshape(alive[:, :, index], [-1]), index, state)
        new = tf.nest.map_structure(lambda old, new: tf.ensure_shape(new, old.shape), state, new)
        logits = tf.cast(logits, tf.float32)
        vocabulary = logits.shape[-1]
        gained = tf.reshape(tf.nn.log_softmax(logits), [batch, width, vocabulary])
        index += 1
        # A given token is the only choice, and counts for nothing.
        is_given = (index < lengths)[:, None]
        given = tf.one_hot(ids[:, index], vocabulary, 0.0, NEVER)[:, None, :]
        gained = tf.where(is_given[:, :, None], given, gained)
        scores = tf.reshape(alive_scores[:, :, None] + gained, [batch, width * vocabulary])

        # Of the 2 * width best at most `width` end here, so that `width` others can go on.
        count = min(2 * width, width * vocabulary)
        scores, places = tf.math.top_k(scores, count)
        parents, tokens = places // vocabulary, places % vocabulary
        extended = tf.gather(alive, parents, batch_dims=1)
        extended = tf.where(columns == index, tokens[:, :, None], extended)
        full = (index + 1 >= lengths + max_tokens)[:, None]
        ends = (tokens == end_id) & ~is_given

        # A sequence that has reached `max_tokens` without an end is worse than any that has ended.
        cut = full & ~ends
        values = normalised(scores, tf.fill([batch, count], index + 1))
        values = tf.where(cut, values + NEVER / 2, values)
        values = tf.where((ends | cut) & (scores > NEVER / 4), values, NEVER)
        done_values, best = tf.math.top_k(tf.concat([done_values, values], 1), width)
        pairs = [(done, extended), (done_scores, scores)]
        pairs.append((done_ends, tf.fill([batch, count], index + 1)))
        done, done_scores, done_ends = (
            tf.gather(tf.concat(pair, 1), best, batch_dims=1) for pair in pairs
        )

        alive_scores, best = tf.math.top_k(tf.where(ends | full, NEVER, scores), width)
        alive = tf.gather(extended, best, batch_dims=1)
        parents = tf.gather(parents, best, batch_dims=1)
        rows = tf.reshape(examples * width + parents, [-1])
        state = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), new)
        return index, alive, alive_scores, done, done_scores, done_values, done_ends, state

    def unfinished(index, alive, alive_scores, done, done_scores, done_values, *_):
        # What an alive sequence can still reach: its score never grows, the divisor may.
        longest = lengths[:, None] + (max_tokens if penalty > 0 else 1)
        best = alive_scores[:, :1]
        hopeless = (done_values[:, :1] >= normalised(best, longest)) | (best < NEVER / 4)
        return (index < total - 1) & ~tf.reduce_all(hopeless)

    state = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, width, axis=0), state)
    alive = tf.repeat(ids[:, None, :], width, axis=1)
    # All sequences of an example are equal at first, so that only one may count.
    alive_scores = tf.tile(tf.one_hot([0], width, 0.0, NEVER), [batch, 1])
    nothing = tf.fill([batch, width], NEVER)
    ends = tf.repeat(lengths[:, None], width, axis=1)
    start = (tf.reduce_min(lengths) - 1, alive, alive_scores, alive, nothing, nothing, ends)
    _, _, _, done, scores, _, ends, _ = tf.while_loop(
        unfinished, body, (*start, state), parallel_iterations=1
    )
    return done[:, 0], ends[:, 0], scores[:, 0]
