"""Fromage as a frame in float64: direction x scale x bound.

c2 <- beta c2 + (1 - beta) mean_i(g^2/r2)               of each column, g over its part's RMS
r2 <- beta r2 + (1 - beta) mean_j(g^2/c2)               of each row; 1 - beta is 1 from zero on
m  <- mu m + (1 - mu) g                                 m_0 = 0
v  <- beta v + (1 - beta) g^2                           v_0 = 0
s2 <- beta s2 + (1 - beta) mean(g^2)                    of each part, in steps with a gradient of it
U  =  g                                                 "gradient"
      (1 - mu) g + mu m, or m                           "momentum", with Nesterov or without
      the orthogonal factor of that                     "spectral"; with a beta each row or
                                                        column along the longer side over its v:
v2 <- beta v2 + (1 - beta) mean(U^2)                    1 - beta is 1 from zero on
      m / (1 - mu^t) / sqrt(v / (1 - beta^t))           "adam"; 0 where v is below float32's normals
      g, rows then columns to RMS 1, k times            "sinkhorn"
      g_ij / (r_i c_j)                                  "factored"
W  <- (W - lr |W| U/|U|) / sqrt(1 + lr^2)               of the tensor, of each row or of each block

Then the bound: |W| <= p_bound |W_0|, or |W| = |W_0| ("sphere", which takes the place of the root).
A tensor that starts at zero goes W <- W - lr min_scale sqrt(n) U/|U| in each part; a row or an
expert without a gradient in this step stays. A part with less than its share T = |W_0| sqrt(n/N)
of another tensor's norm, a row with less than T/2 or a block with less than T/10, is a placeholder,
whose anchor is -T:

P  <- (P - r R U/|U|) / sqrt(1 + r^2),  R = max(|P|, T),  r = max(lr, min(10 lr, 0.01))

and then |P| <= p_bound T, or |P| <= T on the sphere. Vectors under any direction but "gradient" are
stepped entry by entry: W <- W - lr max(RMS(W_0), min_scale) U, U of "adam" with 0.9 and 0.99.

Under "rms" a part of n entries goes P <- P - lr |P_0| g / sqrt(n s2 / (1 - beta^t)) with its own t
(a placeholder by T and r, one that starts at zero by min_scale sqrt(n)), and then the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.oracles import Array, Path, Rate, gradient_counts, norm, rates

Orthogonal = Callable[[Array], Array]

# By the method of Amsel, Persson, Musco, Gower (arXiv 2505.16932), for [0.004, 1]
POLYNOMIALS = (
    (8.340980668025974, -24.59736786940365, 18.223024852918456),
    (3.9779944234377087, -2.9654342081377387, 0.5642720010276877),
    (3.3274785412878574, -2.4952367968355644, 0.5108133677613138),
    (2.3085645777761497, -1.675994456278577, 0.41957392878072947),
)
_SAFETY = 1.01
# Directions whose entries keep nothing.
STATELESS = ("gradient", "rms", "sinkhorn", "factored")
_TINY = float(np.finfo(np.float32).tiny)


def exact_factor(matrix: Array) -> Array:
    """U V^T of the singular value decomposition, over the singular values that are not zero."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > 1e-12 * np.max(values, initial=0.0)
    return left[:, kept] @ right[kept]


def polar_express(matrix: Array) -> Array:
    """Four steps X <- a X + (b A + c A^2) X, A = X X^T, on the smaller side.

    X starts as M/|M M^T|^(1/2).
    """
    size = norm(matrix)
    if size == 0.0:
        return np.zeros_like(matrix)
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / size
    x = x / np.sqrt(norm(x @ x.T))
    for a, b, c in POLYNOMIALS:
        gram = x @ x.T
        x = a / _SAFETY * x + (b / _SAFETY**3 * gram + c / _SAFETY**5 * gram @ gram) @ x
    return x.T if tall else x


def balanced(matrix: Array, iterations: int) -> Array:
    """Every row, then every column, to root mean square 1, ``iterations`` times."""
    found = matrix.copy()
    for _ in range(iterations):
        for axis in (1, 0):
            size = np.sqrt(np.mean(found**2, axis=axis, keepdims=True))
            found = np.divide(found, size, out=np.zeros_like(found), where=size > 0)
    return found


def is_vector(weight: Array) -> bool:
    """At most one dimension is longer than 1."""
    return sum(length > 1 for length in weight.shape) <= 1


def parts(
    weight: Array,
    scale: str,
    split_dim: int | None = None,
    split_sizes: int | Sequence[int] | None = None,
) -> list[Array]:
    """What has a norm of its own, as views: the tensor, its rows or its blocks."""
    if scale == "tensor" or is_vector(weight):
        return [weight]
    if scale == "row" or split_sizes is None:
        return list(weight)
    dim = split_dim or 0
    if isinstance(split_sizes, int):
        return np.split(weight, split_sizes, axis=dim)
    return np.split(weight, np.cumsum(split_sizes)[:-1], axis=dim)


def anchors_of(
    weight: Array,
    scale: str,
    split_dim: int | None = None,
    split_sizes: int | Sequence[int] | None = None,
) -> Array:
    """The first norm of each part, or -T of a placeholder."""
    each = parts(weight, scale, split_dim, split_sizes)
    norms = np.array([norm(part) for part in each])
    shares = norm(weight) * np.sqrt([part.size / max(weight.size, 1) for part in each])
    least = {"tensor": 0.0, "row": 0.5, "block": 0.1}[scale]
    return np.where(norms < least * shares, -shares, norms)


def frame(
    weight: Array,
    grads: Sequence[Array | None],
    lr: Rate,
    *,
    direction: str = "gradient",
    scale: str = "tensor",
    bound: str | None = None,
    p_bound: float | None = None,
    lr_factor: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    beta: float | None = None,
    split_dim: int | None = None,
    split_sizes: int | Sequence[int] | None = None,
    momentum_dtype: str | None = None,
    iterations: int | None = None,
    min_scale: float,
    maximize: bool = False,
    orthogonal: Orthogonal = polar_express,
) -> Path:
    """The trajectory of one tensor; ``momentum_dtype`` is taken and no momentum is rounded."""
    path = Path()
    w = np.array(weight, dtype=np.float64)
    vector = is_vector(w)
    elementwise = vector and direction != "gradient"
    if elementwise:
        direction, momentum, beta = "adam", 0.9, 0.99
    scale = "tensor" if vector else scale
    paper = (direction, scale, bound) == ("gradient", "tensor", None)
    if p_bound is None and not paper:
        p_bound = 4.0
    memory = _Memory(direction, momentum, nesterov, beta, w)
    neurons = None if direction != "spectral" or beta is None else _Neurons(beta)
    beta = 0.99 if beta is None else beta
    mean_squares = np.zeros(len(anchors_of(w, scale, split_dim, split_sizes)))
    counts = np.zeros_like(mean_squares)
    factors: list[_Factors] = []

    def of_parts(array: Array) -> list[Array]:
        return parts(array, scale, split_dim, split_sizes)

    def anchors(array: Array) -> Array:
        return anchors_of(array, scale, split_dim, split_sizes)

    for grad, common in zip(grads, rates(lr, len(grads)), strict=True):
        eta = common * (1.0 if lr_factor is None else lr_factor)
        if gradient_counts(path, w, grad, anchors):
            path.step += 1
            g = np.asarray(grad, dtype=np.float64) * (-1.0 if maximize else 1.0)
            u = memory.direction(g, path.step)
            largest = max(of_parts(g), key=np.size)
            if direction == "factored" and not factors:
                factors = [_Factors(part) for part in of_parts(g)]
            if elementwise:
                w -= eta * max(path.anchor_norm[0] / np.sqrt(w.size), min_scale) * u
            else:
                each = zip(of_parts(w), of_parts(u), of_parts(g), path.anchor_norm, strict=True)
                waits = scale == "row" or (scale == "block" and split_sizes is None)
                for place, (part, along, own, anchor) in enumerate(each):
                    if direction == "rms" and np.any(own):
                        counts[place] += 1
                        mean_squares[place] *= beta
                        mean_squares[place] += (1.0 - beta) * np.mean(own**2)
                    if direction == "factored" and np.any(own):
                        factors[place].take_in(own / np.sqrt(np.mean(own**2)), beta)
                    if direction == "spectral":
                        flat = orthogonal(along.reshape(len(along), -1))
                        if neurons is not None:
                            flat = neurons.even(place, flat, largest)
                        along = flat.reshape(along.shape)
                    if eta == 0.0:
                        continue
                    if waits and not np.any(own):
                        continue  # a row or an expert without a gradient in this step
                    if direction == "rms":
                        size = np.sqrt(mean_squares[place] / (1.0 - beta ** counts[place]))
                        part[...] = _running_step(
                            part, along / size, eta, anchor, bound, p_bound, min_scale
                        )
                        continue
                    if direction == "sinkhorn":
                        flat = along.reshape(len(along), -1)
                        along = balanced(flat, iterations or 5).reshape(along.shape)
                    if direction == "factored":
                        along = factors[place].direction(along)
                    part[...] = _step(part, along, eta, anchor, bound, p_bound, min_scale, paper)
        path.weights.append(w.copy())
    path.moments.update(memory.moments)
    if direction == "factored" and factors:
        path.moments.update(_as_state(factors, w.shape, scale, split_dim, split_sizes))
    if direction == "rms":
        path.moments.update(grad_rms=np.sqrt(mean_squares), grad_count=counts)
    return path


class _Factors:
    """Running mean squares of the rows and columns of one part, each without the other."""

    def __init__(self, like: Array) -> None:
        self.rows = np.zeros(len(like))
        self.columns = np.zeros(like[0].size)

    def take_in(self, g: Array, beta: float) -> None:
        """Take one gradient in."""
        squares = g.reshape(len(g), -1) ** 2
        over = (squares.T / np.where(self.rows > 0, self.rows, 1.0)).T
        self.columns = self._next(self.columns, over.mean(axis=0), beta)
        over = squares / np.where(self.columns > 0, self.columns, np.inf)
        self.rows = self._next(self.rows, over.mean(axis=1), beta)

    def _next(self, before: Array, new: Array, beta: float) -> Array:
        return np.where(before > 0, beta * before + (1.0 - beta) * new, new)

    def direction(self, g: Array) -> Array:
        """The gradient over the roots of their product, 0 where there has never been one."""
        product = np.sqrt(np.multiply.outer(self.rows, self.columns)).reshape(g.shape)
        return np.divide(g, product, out=np.zeros_like(g), where=product > 0)


class _Neurons:
    """Running mean squares of rows or columns of orthogonal factors, by part."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.squares: dict[int, Array] = {}

    def even(self, place: int, u: Array, largest: Array) -> Array:
        """Take one factor in; give its neurons their usual sizes. ``largest``: of the parts."""
        axis = 1 if len(largest) >= largest[0].size else 0
        new = np.mean(u**2, axis=axis, keepdims=True)
        before = self.squares.get(place, np.zeros_like(new))
        self.squares[place] = np.where(before > 0, self.beta * before + (1 - self.beta) * new, new)
        size = np.sqrt(self.squares[place])
        return np.divide(u, size, out=np.zeros_like(u), where=size > 0)


def _as_state(
    factors: Sequence[_Factors],
    shape: tuple[int, ...],
    scale: str,
    split_dim: int | None,
    split_sizes: int | Sequence[int] | None,
) -> dict[str, Array]:
    """Rows and columns as tensors like the weight, with one entry for each block."""
    rows = [np.sqrt(each.rows) for each in factors]
    columns = [np.sqrt(each.columns) for each in factors]
    tail = (1,) * (len(shape) - 1)
    if scale == "block" and split_sizes is None:
        return {
            "row_rms": np.stack(rows).reshape(*shape[:2], *tail[1:]),
            "column_rms": np.stack(columns).reshape(shape[0], 1, *shape[2:]),
        }
    if split_dim == 1:
        return {"row_rms": np.stack(rows, axis=1), "column_rms": np.concatenate(columns)[None]}
    return {
        "row_rms": np.concatenate(rows).reshape(-1, *tail),
        "column_rms": np.stack(columns).reshape(-1, *shape[1:]),
    }


class _Memory:
    """The moments of one tensor, and the direction that they and a gradient give."""

    def __init__(
        self,
        direction: str,
        momentum: float | None,
        nesterov: bool | None,
        beta: float | None,
        like: Array,
    ) -> None:
        self.kind = direction
        self.mu = 0.9 if momentum is None else momentum
        self.nesterov = nesterov is None or nesterov
        self.beta = 0.999 if beta is None else beta
        names = {**dict.fromkeys(STATELESS, ()), "adam": ("momentum", "second_moment")}
        self.moments = {n: np.zeros_like(like) for n in names.get(direction, ("momentum",))}

    def direction(self, g: Array, t: int) -> Array:
        """Take one gradient in; spectral's is the matrix whose orthogonal factor is meant."""
        if self.kind in STATELESS:
            return g
        m = self.mu * self.moments["momentum"] + (1.0 - self.mu) * g
        self.moments["momentum"] = m
        if self.kind != "adam":
            return (1.0 - self.mu) * g + self.mu * m if self.nesterov else m
        v = self.beta * self.moments["second_moment"] + (1.0 - self.beta) * g**2
        self.moments["second_moment"] = v
        size = np.sqrt(v / (1.0 - self.beta**t))
        return np.divide(m / (1.0 - self.mu**t), size, out=np.zeros_like(g), where=v >= _TINY)


def _running_step(
    w: Array,
    u: Array,
    eta: float,
    anchor: float,
    bound: str | None,
    p_bound: float | None,
    min_scale: float,
) -> Array:
    """u has entries of about one. ``anchor`` as in :func:`anchors_of`."""
    if anchor == 0.0:
        return w - eta * min_scale * u
    if anchor < 0.0:
        eta = max(eta, min(10.0 * eta, 0.01))
    new = w - eta * abs(anchor) / np.sqrt(w.size) * u
    size = norm(new)
    if bound == "sphere" and anchor > 0.0:
        return new * (anchor / size)
    largest = abs(anchor) * (1.0 if bound == "sphere" else (p_bound or np.inf))
    return new * (largest / size) if size > largest else new


def _step(
    w: Array,
    u: Array,
    eta: float,
    anchor: float,
    bound: str | None,
    p_bound: float | None,
    min_scale: float,
    paper: bool,
) -> Array:
    length = norm(u)
    if length == 0.0:
        return w
    unit, floor = u / length, min_scale * np.sqrt(w.size)
    if anchor == 0.0:
        if not paper:
            return w - eta * floor * unit
        return (w - eta * max(norm(w), floor) * unit) / np.sqrt(1.0 + eta**2)
    reference = norm(w)
    if anchor < 0.0:
        reference, eta = max(reference, -anchor), max(eta, min(10.0 * eta, 0.01))
    new = w - eta * reference * unit
    if bound == "sphere" and anchor > 0.0:
        return new * (anchor / norm(new))
    new = new / np.sqrt(1.0 + eta**2)
    if bound == "sphere":
        p_bound = 1.0
    size, largest = norm(new), np.inf if p_bound is None else p_bound * abs(anchor)
    return new * (largest / size) if size > largest else new
