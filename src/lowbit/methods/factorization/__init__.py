"""Factorization: layers become chains of small layers whose weights were low-bit numbers from the start.

    student, found = lb.factorize(model, lb.Recipe.uniform("int4", "int8"), batches, "2x")
    print(found)                                       # what it cost and bought; found.layers tells it layer by layer

A kernel [O, I, kh, kw] is close to a sum of R products of three vectors (a CP decomposition), and as a network that is
a 1x1 convolution, a depthwise one and another 1x1 (`chains`). Rounding float factors afterwards destroys them: they are
large numbers that cancel each other. So the factors are looked for on the low-bit grid itself.

The published way (``exact=True``) alternates between the least squares problem and the grid until both agree (AO-ADMM,
`solvers`), from a start whose components are as small as possible (`starts`), and sets BatchNorm statistics anew. Two
things serve better. Descending in the integers, column by column and after rounding by second order, finds factors as
good as ADMM's with a scale for each component, in an eighth of the time. And the last and the depthwise layer of each
chain can be fitted, without labels, to what the float network returns there (`refit`, `depthwise`).

A chain is not always worth it. At three bits a weight or more, a dense layer rounded by second order is as good and
simpler; and a chain of half the MACs holds twice the channels in between, so narrow layers gain no time. Each layer can
therefore stay dense at some bits, and a budget of BOPs, bytes or measured milliseconds decides (`allocate`). The result
is an ordinary student: chains are plain layers with quantizers between them.

References:
    Cherniuk, Abukhovich, Phan, Oseledets, Cichocki and Gusak, Quantization aware factorization for deep neural network
    compression, Journal of Artificial Intelligence Research 81, 2024, https://arxiv.org/abs/2308.04595, and the
    authors' code.

Differs from the paper:
    The best iterate of ADMM is kept, not the last. Scales of factors are folded into those of the chain's layers.
    Without ``exact``, scales are one a component, the depthwise factor has 8 bits, and a ridge takes the place of the
    error-preserving correction.
    New BatchNorm statistics are kept only if they bring the outputs closer to the float network's: statistics of plain
    images harm a network that was trained on augmented ones.
"""
