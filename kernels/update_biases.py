"""What an update computes once for each latent: its bias, and the scalars that its rows need."""

import triton
import triton.language as tl


@triton.jit
def adam(weight, first, second, gradient, step_size, root, rest1, beta2, rest2, eps):
    """torch.optim.Adam with its corrections inside step_size and root; rest is 1 - beta."""
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
    """Compute one latent's scalars, and do the TASK with its bias.

    `bias_grads` [m] gets the gradient of the bias, `fired` [m] the number of tokens on which the
    latent is active, and with ALONG `along` [m] the part of the decoder's gradient along a decoder
    row of norm one. The TASK has the gradient times `factor`: "update" is a step of Adam, "squares"
    stores its square.
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
