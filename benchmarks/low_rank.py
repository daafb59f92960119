"""Low-rank kernels against fewer neurons: accuracy of MiniLM without any further training.

    python benchmarks/low_rank.py --folder FOLDER

`FOLDER` is that of `python benchmarks/shrink.py --quick --folder FOLDER`, which leaves the teacher.

Each kernel W of the blocks is replaced by a product of two matrices of rank r, with as many numbers
as a share of W's. "weighted" has the least change of the layer's outputs on 256 training texts: W'
minimizes ‖X(W - W')‖ for the inputs X of the layer. "plain" is the truncated singular value
decomposition of W. "fewer neurons" is `ke.shrink(feed_forward=…, importance="reconstruction")` on
the same texts. Two products take longer than one with the same number of multiplications, so at
equal numbers of parameters fewer neurons are the faster choice, too.
"""

import argparse
from pathlib import Path

import numpy as np
import shrink

SHARES, NEURONS = (1.0, 0.75, 0.5), (1536, 1152, 768, 384)


def low_rank(matrix, share, moment=None):
    """The best matrix with a share of the numbers, for inputs with the given second moments."""
    rank = int(share * matrix.size / sum(matrix.shape))
    root = inverse = np.eye(len(matrix))
    if moment is not None:
        moment = moment + 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment))
        values, vectors = np.linalg.eigh(moment)
        root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    left, values, right = np.linalg.svd(root @ matrix, full_matrices=False)
    return inverse @ (left[:, :rank] * values[:rank]) @ right[:rank], rank * sum(matrix.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="that of shrink.py --quick")
    arguments = parser.parse_args()
    import keras_efficient as ke
    from keras_efficient.architecture._weights import KERNEL, all_weights
    from keras_efficient.compression._observers import input_grams

    run = shrink.Run.quick_one(arguments.folder)
    model, tokenizer = run.teacher()
    few = run.batches(run.train, tokenizer).take(8).cache()
    weights = [w for w in all_weights(model) if w.kind == KERNEL and "transformer" in w.path]
    before = {weight: weight.matrix(weight.value).numpy() for weight in weights}
    whole = sum(matrix.size for matrix in before.values())
    moments = input_grams(model, weights, [features for features, _ in few])

    def show(name, model, size):
        accuracy = run.accuracy(model, tokenizer)
        print(f"{name:<28} {accuracy:7.2%} {size / whole:6.2f} of the kernels", flush=True)

    show("whole", model, whole)
    for share in SHARES:
        for name in ("weighted", "plain"):
            total = 0
            for weight, matrix in before.items():
                moment = moments[weight] if name == "weighted" else None
                small, size = low_rank(matrix, share, moment)
                total += size
                weight.value.assign(weight.unmatrix(small.astype("float32")))
            show(f"rank for {share:.0%}, {name}", model, total)
    for weight, matrix in before.items():
        weight.value.assign(weight.unmatrix(matrix))
    blocks, width = model.backbone.num_layers, model.backbone.hidden_dim
    for neurons in NEURONS[1:]:
        small, _ = ke.shrink(model, feed_forward=neurons, data=few, importance="reconstruction")
        run.compile(small)
        removed = 2 * blocks * width * (NEURONS[0] - neurons)
        show(f"{neurons} of {NEURONS[0]} neurons", small, whole - removed)


if __name__ == "__main__":
    main()
