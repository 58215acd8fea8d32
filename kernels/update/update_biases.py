"""Compute an update's numbers of each latent: its bias, and the scalars that its rows need."""

import triton
import triton.language as tl


@triton.jit
def adam(weight, first, second, gradient, step_size, root, rest1, beta2, rest2, eps):
    """Return a weight and its moments after a step of torch.optim.Adam.

    Args:
        weight: the weight, of any shape, as the next three.
        first: first moment.
        second: second moment.
        gradient: gradient.
        step_size: lr / (1 - beta1^step).
        root: sqrt(1 - beta2^step).
        rest1: 1 - beta1.
        beta2: decay rate of the second moment.
        rest2: 1 - beta2.
        eps: term added to the denominator.
    """
    first += rest1 * (gradient - first)
    second = beta2 * second + rest2 * gradient * gradient
    denominator = tl.sqrt(second) / root + eps
    return weight - step_size * (first / denominator), first, second


@triton.jit
def update_biases(
    values,
    value_grads,
    entries,
    start,
    slots,
    extra_bias,
    extra_along,
    factor,
    bias_grads,
    along,
    fired,
    squares,
    bias,
    first,
    second,
    rates,
    rest1,
    beta2,
    rest2,
    eps,
    EXTRA: tl.constexpr,
    ALONG: tl.constexpr,
    FACTOR: tl.constexpr,
    TASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one latent's scalars, and perform TASK on its bias; one program per latent.

    Args:
        values: [n, k] float32 values of the code.
        value_grads: [n, k] float32, gradients of the values.
        entries: [n * k] int64, see `ByLatent`.
        start: [m + 1] int64, see `ByLatent`.
        slots: [m] int64, see `Slots`, if EXTRA.
        extra_bias: [c] float32, additional gradients of biases, if EXTRA.
        extra_along: [c] float32, see `Slots`, if EXTRA and ALONG.
        factor: [] float64, factor of the gradient, if FACTOR.
        bias_grads: [m] float32 output, gradient of the bias, before `factor`.
        along: [m] float32 output, component of the decoder's gradient along a row of norm one, if
            ALONG.
        fired: [m] int64 output, number of tokens on which the latent is active.
        squares: [m] float64 output, if TASK is "squares".
        bias: [m] float32, updated if TASK is "update", as its moments.
        first: [m] float32, first moment.
        second: [m] float32, second moment.
        rates: [2] float64, see `reference.adam_rates`.
        rest1: see `adam`, as the next three.
        beta2: decay rate of the second moment.
        rest2: 1 - beta2.
        eps: term added to the denominator.
        EXTRA: whether there are extra gradients.
        ALONG: whether `along` is computed.
        FACTOR: whether there is a factor.
        TASK: "update": apply a step of Adam; "squares": store the square of the gradient. Both
            after multiplication by `factor`.
        BLOCK: entries per iteration.
    """
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(start + latent), tl.load(start + latent + 1)
    gradients = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    for e in range(begin, end, BLOCK):
        place = e + tl.arange(0, BLOCK)
        entry = tl.load(entries + place, place < end, other=0)
        gradient = tl.load(value_grads + entry, place < end, other=0.0)
        gradients += gradient
        if ALONG:
            products += gradient * tl.load(values + entry, place < end, other=0.0)
    gradient = tl.sum(gradients)
    if EXTRA:
        slot = tl.load(slots + latent)
        gradient += tl.load(extra_bias + slot, slot >= 0, other=0.0)
    if ALONG:
        # row . gradient of the row = sum of value * (row . residual) = sum of value * value_grad.
        parallel = tl.sum(products)
        if EXTRA:
            parallel += tl.load(extra_along + slot, slot >= 0, other=0.0)
        tl.store(along + latent, parallel)
    tl.store(bias_grads + latent, gradient)
    tl.store(fired + latent, end - begin)
    if FACTOR:
        gradient *= tl.load(factor).to(tl.float32)
    if TASK == "squares":
        tl.store(squares + latent, gradient.to(tl.float64) * gradient.to(tl.float64))
    else:
        updated, mean, square = adam(
            tl.load(bias + latent),
            tl.load(first + latent),
            tl.load(second + latent),
            gradient,
            tl.load(rates).to(tl.float32),
            tl.load(rates + 1).to(tl.float32),
            rest1,
            beta2,
            rest2,
            eps,
        )
        tl.store(bias + latent, updated)
        tl.store(first + latent, mean)
        tl.store(second + latent, square)
