"""Curve outputs: a regression output as a point on a path, so that 8-bit outputs carry 10 to 11 bits.

    points, made = lb.curve_output(model, batches, recipe)          # chooses a path by the noise, or refuses
    student = lb.quantize(points, recipe)                           # and calibrate, post-train, distill as any other
    student = lb.attach_decoder(student, lb.Decoder(made.codec))    # last: it returns quantities

An output of 8 bits has 256 levels, and noise of one level is noise of 1/256. Two outputs of 8 bits have 65,536 pairs,
but as a coarse and a fine part they cannot be learned: the fine one jumps. A path that fills the square has no jumps
(`paths`): the quantity is the way along it, and each channel runs to and fro. Reading it back (`decoders`) is finding
the nearest point, by a table. On a path of length L, steps and independent noise of a channel count an L-th.

What limits L is noise that carries a point to the next branch, and a network that does not know the quantity well: the
mean of several points of the path is off it. `choose` measures both and takes the longest path that fits, or none. The
head is made of the direct model's (`heads`) and trained from there, on labels or on what the direct model returns
(`fit`). A fold, which splits the last layer into copies that saturate one after the other, needs no training and has
no branches; it makes the steps of the output finer and leaves noise inside the network as it is.

References:
    Curve-valued outputs for quantized regression, 2024, https://arxiv.org/abs/2405.14024 (v2).

Differs from the paper:
    Snakes in the place of Hilbert curves, a narrower margin, one widened layer in the place of two heads, a start from
    the direct model, a loss of points alone, and the choice of the path, which is made by hand there.
"""
