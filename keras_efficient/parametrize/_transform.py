"""One link of the chain through which a weight is seen."""

#: The places in a chain, in their order.
LOW_RANK, CLUSTER, MASK, QUANTIZE = 1, 2, 3, 4


class Transform:
    """What a weight is seen through: a function of its value, with variables of its own.

    A subclass says where in the chain it stands, makes its variables in `build`, and computes in
    `__call__`. Anything that a training step has to do belongs to its `updater`.

    Attributes:
        name: str, of the kind of transform; a weight has at most one of each.
        place: int, `LOW_RANK` < `CLUSTER` < `MASK` < `QUANTIZE`.
        weight: the `Weight` it is attached to.
        updater: object whose `after_update()` is called in the graph after every update, in every
            replica, and whose `build(model)` outside of the graph before that; or None. One updater
            may serve the transforms of many weights.
        trains: whether it has variables that train.
        in_place: whether the base variable already has the value seen (a mask that was applied).
    """

    name: str
    place: int
    updater = None
    in_place = False
    trains = False

    def attach(self, weight, view):
        """Called once; the variables are made here, in the strategy's scope."""
        self.weight, self._view = weight, view
        self.build()

    def variable(self, name, shape, initial, **kwargs):
        """A new variable of this transform; see `flavor.base.Store.variable`. A `tf.Variable`."""
        made = self._view.add_variable(self, name, shape, initial, **kwargs)
        return self.weight.flavor.value(made)

    def build(self):
        """Make the variables; `self.weight` is set."""

    def __call__(self, value):
        """The value seen, of the same shape and dtype as `value`."""
        raise NotImplementedError

    # --- what the summary shows ----------------------------------------------------------------

    #: Bits that each number is stored in, if fewer than the dtype's.
    bits = None
    #: Bytes that are stored besides the numbers: scales, centroids.
    extra_bytes = 0

    def describe(self) -> str:
        """A few words for the summary."""
        return self.name
