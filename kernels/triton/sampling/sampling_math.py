"""What the sampling kernels share: the noise, the weights and the order of ids, the same bits on every machine.

    noise = -log(-log1p(-u)),  u from Philox4x32-10 at counter (id // 4, position, 0, 0) under the seed, word id % 4

log and exp are sums and products of float32 in the reference's order, and the launch table compiles every kernel that
uses them without contraction: a fused multiply-add rounds once where the reference rounds twice. A score `logit +
temperature * noise` is float64, where the product of two float32 is exact. Weights are whole multiples of 2^-44 of the
largest, so they add in any order to the same bits. A key is the integer whose order is that of its float32.
Philox: https://doi.org/10.1145/2063384.2063405
"""

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-(2**31))  # of what is no id
NO_CUT = tl.constexpr(-(2**31) + 1)  # above that, below the key of every float
UNIT = tl.constexpr(2.0**44)
FLOAT_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def load_logits(pointers, inside):
    """float32, NaN kept, -0 as 0 so that equal logits have equal keys; -inf where not inside."""
    x = tl.load(pointers, inside, -float("inf")).to(tl.float32)
    return tl.where(x == 0, 0.0, x)


@triton.jit
def to_key(x):
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def from_key(key):
    key = tl.maximum(key, -0x7F800001)  # the key of -inf: what is below it stands for no id
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def gap_below(x, peak):
    """`x - peak`, 0 at the peak even at an infinite one."""
    return tl.where(x == peak, 0.0, x - peak)


@triton.jit
def natural_log(x, x_minus_1):
    """log of positive normal float32; x - 1 may be more exact than x, as for log1p."""
    bits = x.to(tl.int32, bitcast=True) - 0x3F3504F3  # counted from sqrt(1/2), so that the mantissa lies about 1
    exponent = bits >> 23
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(exponent == 0, x_minus_1, f)
    fit = 0.087004356 * f - 0.14267486
    fit = fit * f + 0.14914767
    fit = fit * f - 0.16577585
    fit = fit * f + 0.19963063
    fit = fit * f - 0.25001338
    fit = fit * f + 0.33333910
    square = f * f
    return exponent.to(tl.float32) * 0.69314718 + (f + (f * square * fit - 0.5 * square))


@triton.jit
def weight_units(scaled):
    """`exp(scaled)` for scaled <= 0 in whole units of 2^-44, int64."""
    x = tl.maximum(scaled, -64.0)  # below half a unit
    power = tl.floor(x * 1.4426950 + 0.5)
    r = x - power * 0.693359375 - power * -2.1219444e-4
    fit = 0.0013814599 * r + 0.0083687166
    fit = fit * r + 0.041668389
    fit = fit * r + 0.16666521
    fit = fit * r + 0.49999994
    exp = r * r * fit + r + 1.0
    exp = (exp.to(tl.int32, bitcast=True) + (power.to(tl.int32) << 23)).to(tl.float32, bitcast=True)
    return (exp * UNIT).to(tl.int64)


@triton.jit
def gumbel_noise(seeds, positions, quads):
    """seeds int64 and positions int32 `[ROWS, 1]`, quads `[ROWS, N / 4]` the ids // 4 -> noise `[ROWS, N]`."""
    zero = quads * 0
    w0, w1, w2, w3 = tl.philox(seeds, quads, positions + zero, zero, zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [ROWS, N / 4, 2, 2]: the last two axes count 0, 1, 2, 3
    words = tl.reshape(words, [quads.shape[0], quads.shape[1] * 4])
    uniform = tl.minimum(words.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.99999994)
    exponential = -natural_log(1.0 - uniform, -uniform)
    return -natural_log(exponential, exponential - 1.0)


@triton.jit
def best_of(score, ids):
    """The largest score of each row and the lowest id that has it: `[ROWS, 1]` both."""
    best = tl.max(score, 1, keep_dims=True)
    return best, tl.min(tl.where(score == best, ids, 0x7FFFFFFF), 1, keep_dims=True)
