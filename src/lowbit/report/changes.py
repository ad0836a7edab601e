"""What changed in a variant against the float model, and why, in a few lines each."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.formats import FLOAT
from lowbit.pilot.record import LayerRow, OutputRow, Run, Trial
from lowbit.report import decision, figures, outputs
from lowbit.report.language import of_record, several, text

Change = tuple[str, str]  # what changed, and why


def of_trial(trial: Trial, run: Run) -> list[Change]:
    """What was changed to make a variant, and why; nothing for float and for a variant that has no figures."""
    if trial.recipe is None or not trial.layers:
        return []
    return [*_formats(trial), *_methods(trial), *_figures(trial, run)]


def _formats(trial: Trial) -> Iterator[Change]:
    groups: dict[tuple[str, str], list[LayerRow]] = {}
    for row in trial.layers:
        groups.setdefault((row.weights, row.activations), []).append(row)
    chosen = (
        text("the search chose so within its budget; each layer's reason is below")
        if trial.search
        else text("the choice of chains and formats within the budget was so")
        if trial.factorization and len(trial.factorization.budgets)
        else text("the recipe asks for it")
    )
    for (weights, activations), rows in sorted(groups.items(), key=lambda item: -len(item[1])):
        if weights == FLOAT:
            reasons = dict.fromkeys(of_record(row.reason) for row in rows if row.reason)
            yield (
                several("{number} layer stayed float", "{number} layers stayed float", len(rows)),
                "; ".join(reasons) or text("no reason was recorded"),
            )
        else:
            yield (
                several(
                    "{number} layer of {total} has {weights} weights and {activations} activations",
                    "{number} layers of {total} have {weights} weights and {activations} activations",
                    len(rows),
                    total=len(trial.layers),
                    weights=weights,
                    activations=activations,
                ),
                chosen,
            )


def _methods(trial: Trial) -> Iterator[Change]:
    if trial.factorization:
        made = sum(bool(one.kind) for one in trial.factorization.layers)
        yield (
            several("{number} layer became a chain of small ones", "{number} layers became chains of small ones", made),
            text("the recipe factorizes them: fewer weights and operations"),
        )
    if trial.output:
        yield (
            text("the output is a point on the path {path}", path=trial.output.path)
            if trial.output.path
            else text("the output stayed direct"),
            _why_the_path(trial.output),
        )
    if trial.features:
        yield (
            text(
                "{number} features became {code} codes, read by a new linear head",
                number=f"{trial.features.features:,}",
                code=trial.features.code,
            ),
            text(
                "the recipe asks for it: {packed} bytes a sample instead of {floats}",
                packed=f"{trial.features.bytes_packed:,}",
                floats=f"{trial.features.bytes_float:,}",
            ),
        )
    if trial.distillation:
        labels = trial.distillation.loss == "labels"
        yield (
            text("weights and ranges were trained"),
            text("to return the labels") if labels else text("to return what the float model returns, without labels"),
        )
    elif trial.search and trial.search.epochs:
        yield text("weights and ranges were trained"), text("for the formats that the search found")


def _why_the_path(row: OutputRow) -> str:
    """Why the output is what it is; of a path that lost, what was expected of it and that it did not come."""
    reason = of_record(row.reason) or text("the path was given")
    if outputs.beside_direct(row) != "worse":
        return reason
    if not row.reason:
        return text("{reason}; measured, it lost to a direct output", reason=reason)
    return text("expected before training: {reason}; measured, it lost to a direct output", reason=reason)


def _figures(trial: Trial, run: Run) -> Iterator[Change]:
    reference = decision.baseline(run)
    if reference is None:
        return
    if reference.file_bytes and trial.file_bytes:
        yield (
            text(
                "the file has {size}, from {before}",
                size=figures.size(trial.file_bytes),
                before=figures.size(reference.file_bytes),
            ),
            text("low-bit weights are stored packed, with their scales; biases stay wide"),
        )
    for row in trial.latencies[:1]:
        before = decision.timing(reference, (row.runtime, row.batch, row.threads))
        check = trial.verification
        if before:
            if row.median_ms < before.median_ms:
                kernels = [name for name in (check.kernels if check else {}) if on_integers(name)]
                reason = (
                    text("integer kernels ran: {names}", names=figures.names(kernels[:4]))
                    if kernels
                    else text("the file has less to compute or to read")
                )
            else:
                reason = text("see “Why is it not faster?” below")
            yield (
                text(
                    "a batch of {batch} takes {time}, from {before}",
                    batch=row.batch,
                    time=figures.milliseconds(row.median_ms),
                    before=figures.milliseconds(before.median_ms),
                ),
                reason,
            )


def on_integers(kernel: str) -> bool:
    """Whether an operator's name is that of an integer kernel that multiplies, in ONNX Runtime or OpenVINO."""
    return kernel.startswith(("QLinearConv", "QGemm", "MatMulInteger", "ConvInteger")) or kernel.endswith(
        (" i8", " u8")
    )
