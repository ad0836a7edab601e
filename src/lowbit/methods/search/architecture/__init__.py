"""Joint search: widths, kernels and expansions together with formats, in shared weights, in one run (FLIQNAS).

    network = ElasticMobileNet(CIFAR)                                        # untrained, or trained before
    student, found = search_architecture(network, batches, ["int4", "int8"], Budget("bops", like="int4", share=0.5),
                                         teacher=resnet20)
    found.architecture, found.recipe                                         # {"stem.width": 16, ...}

In the exploring phase each step draws assignments, trains the weights in one, and tells a guide what came of it. The
published guide is the controller (`policy`), for which choices of the architecture are further decisions under the same
reward. It asks for many more steps than a laptop makes: ours learns what each option does to the loss, and stays within
the budget (`effects`). What the guide then holds best, and uniform formats, are compared on held-out samples
(`candidates`); the remaining steps train the winner by itself, as `distill` would.

A network that nobody trained has no float outputs to be held to: it learns from labels, or from a `teacher`, any
network with the same outputs.

References:
    Dotzel et al., FLIQS: one-shot mixed-precision floating-point and integer quantization search, 2024,
        https://arxiv.org/abs/2308.03290, section 4.4, which leaves options and schedule open.
    Bender et al., Can weight sharing outperform random architecture search? (TuNAS), 2020,
        https://arxiv.org/abs/2008.06120.

Differs from the papers:
    The budget is never exceeded, and what was found is trained in steps of its own.
    Of the controller, the loss counts by its logarithm, and its baseline is another assignment on the same batch.
    In the exploring phase adds and poolings stay float.
"""
