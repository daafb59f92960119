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


def matrix_of(layer):
    """The kernel of a Dense or EinsumDense layer as [inputs, outputs]."""
    kernel = np.array(layer.kernel)
    inputs = kernel.shape[:-1] if "output" in layer.name else kernel.shape[:1]
    return kernel.reshape(int(np.prod(inputs)), -1)


def moments(model, layers, batches):
    """The second moments of the inputs of each layer, by path."""
    found = {layer.path: 0.0 for layer in layers}

    def recorded(layer, call):
        def record(x, *args, **options):
            rows = np.array(x).reshape(-1, len(matrix_of(layer)))
            found[layer.path] += rows.T.astype("float64") @ rows
            return call(x, *args, **options)

        return record

    for layer in layers:
        layer.call = recorded(layer, layer.call)
    for features, _ in batches:
        model(features)
    for layer in layers:
        del layer.call
    return found


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
    import keras

    import keras_efficient as ke

    folder = arguments.folder / "reviews-quick-all"
    run = shrink.Run(
        argparse.Namespace(data="reviews", quick=True, limit=None, folder=folder), seed=0
    )
    run.read()
    model, tokenizer = run.teacher()
    held_out = ke.data.text(
        run.held_out, tokenizer, batch_size=64, max_length=shrink.LONGEST, shuffle=False
    )
    few = run.batches(run.train, tokenizer).take(8).cache()
    kinds = (keras.layers.Dense, keras.layers.EinsumDense)
    layers = [x for x in model._flatten_layers() if isinstance(x, kinds) and "former" in x.path]
    before = {layer.path: np.array(layer.kernel) for layer in layers}
    whole = sum(kernel.size for kernel in before.values())
    seen = moments(model, layers, few)

    def show(name, model, size):
        accuracy = model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]
        print(f"{name:<28} {accuracy:7.2%} {size / whole:6.2f} of the kernels", flush=True)

    show("whole", model, whole)
    for share in SHARES:
        for name in ("weighted", "plain"):
            total = 0
            for layer in layers:
                matrix = before[layer.path].reshape(matrix_of(layer).shape)
                moment = seen[layer.path] if name == "weighted" else None
                small, size = low_rank(matrix, share, moment)
                total += size
                layer.kernel.assign(small.reshape(layer.kernel.shape))
            show(f"rank for {share:.0%}, {name}", model, total)
    for layer in layers:
        layer.kernel.assign(before[layer.path])
    blocks = len(layers) // 6
    width = model.backbone.hidden_dim
    for neurons in NEURONS[1:]:
        small, _ = ke.shrink(model, feed_forward=neurons, data=few, importance="reconstruction")
        run.compile(small)
        removed = 2 * blocks * width * (NEURONS[0] - neurons)
        show(f"{neurons} of {NEURONS[0]} neurons", small, whole - removed)


if __name__ == "__main__":
    main()
