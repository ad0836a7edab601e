"""Distillation: a low-bit student learns its float teacher's outputs through the quantizers, without a label.

The student is the teacher with quantizers in it (self-distillation). Its loss is how far its outputs lie from the
teacher's, so any inputs of the kind that the model will see can train it:

    student = lb.quantize(model, recipe, fold=False)      # BatchNorms stay while it trains
    lb.calibrate(student, batches)
    student, result = lb.distill(student, model, batches, epochs=2)

What learns how is a family of quantizers (`lowbit.families`). The loss of the paper is the Kullback-Leibler divergence
of softened probabilities,

    L = T^2 / B  sum_i sum_c p_t (log p_t - log p_s),    p = softmax(logits / T),

and nothing else: no weight between several losses is left to tune. For outputs that are no class scores there are mean
squared error and cosine distance, and features inside the network can be matched as well. `loss="labels"` is ordinary
quantization-aware training with cross-entropy, the comparison that has the same budget.

Every sixteenth batch is held out: it trains nothing, and the epoch that agrees best with the teacher on it is kept. At
the end ranges are fixed, BatchNorms folded, and the student is one like any other.

References:
    Zhao and Zhao, Self-supervised quantization-aware knowledge distillation, AISTATS 2024,
    https://arxiv.org/abs/2403.11106 (SQAKD), equations 1 to 12 and the authors' code.

Differs from the paper:
    The epoch is chosen by agreement with the teacher on held-out inputs, not by test accuracy.
    Numbers are de-quantized, activations behind a ReLU have an unsigned grid, and EWGS's delta is really updated.
    Ranges start as calibrated and learn in shares of their own size; with ``exact`` they start and learn as published.
"""
