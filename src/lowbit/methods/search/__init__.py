"""Search: which number format for which layer, under a budget, decided while the network trains.

Every layer has one decision: which of the given formats its weights and its input have. Weights are shared by all
assignments and held once; a choice brings only its scales, and one choice of each layer is active in a step.

    student, found = lb.search(model, batches, ["int4", "int8", "mid2/int2"], lb.Budget("bops", like="int4", share=0.6))
    found.recipe                                       # what everything else consumes
    lb.export_onnx(student, "model.onnx", example)

The published search (``exact=True``) draws an assignment from a policy in each step, trains the weights in it, and
teaches the policy by REINFORCE with the loss and the cost as reward (`policy`). At the end the policy has collapsed and
the weights have adapted to the assignment that is left, so nothing is trained again.

A few hundred noisy rewards say little about a hundred logits. What serves better on a laptop's budget of steps is
worked out from the other end: how much each format hurts each layer is measured without training (`sensitivity`), the
best assignment within the budget follows exactly (`knapsack`), and the steps of the exploring phase only correct what
those sensitivities get wrong (`surrogate`). The candidates, uniform assignments among them, are then compared on
held-out samples (`judge`), and the remaining steps train the best one by itself. The baseline that every search has to
beat is the same without exploring: ``by="knapsack"``.

References:
    Dotzel et al., FLIQS: one-shot mixed-precision floating-point and integer quantization search, 2024,
    https://arxiv.org/abs/2308.03290, and the authors' code.

Differs from the paper:
    Costs are bit operations of every layer, MACs x weight bits x activation bits; the code's count leaves out how often
    a convolution's weights are used.
    Without ``exact``, activations have zero points where their range is not symmetric, ranges learn, the loss is the
    distance from the float network and needs no labels, and the budget is never exceeded.
    FLIQS-L names the float formats between 4 and 8 bits nowhere: ours are e2m2, e3m2 and e3m3.
"""
