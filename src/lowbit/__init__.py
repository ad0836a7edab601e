"""lowbit: make trained PyTorch networks low-bit, and prove what each change costs and buys.

    import lowbit as lb

    student = lb.quantize(model, lb.Recipe.uniform(weights="int4", activations="int8"))  # `model` is never changed
    lb.calibrate(student, batches)
    student, trained = lb.distill(student, model, batches)  # optional, for 4 bits and fewer; no labels
    exported = lb.export_onnx(student, "model.onnx", example)
    lb.verify(exported, batches)  # raises, naming the first layer that diverges

Names are imported when they are first used, so that `import lowbit` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbit.allocation import Budget as Budget
    from lowbit.costs import Cost as Cost
    from lowbit.costs import MeasuredCosts as MeasuredCosts
    from lowbit.costs import cost as cost
    from lowbit.errors import LowbitError as LowbitError
    from lowbit.errors import TrainingWarning as TrainingWarning
    from lowbit.export.measured import measure_formats as measure_formats
    from lowbit.export.onnx import Exported as Exported
    from lowbit.export.onnx import export_onnx as export_onnx
    from lowbit.export.verify import Verification as Verification
    from lowbit.export.verify import verify as verify
    from lowbit.export.watching import Watched as Watched
    from lowbit.export.watching import watch as watch
    from lowbit.formats import Binary as Binary
    from lowbit.formats import Block as Block
    from lowbit.formats import Float as Float
    from lowbit.formats import Int as Int
    from lowbit.formats import MidRise as MidRise
    from lowbit.formats import Ternary as Ternary
    from lowbit.formats import parse as parse
    from lowbit.granularity import PerChannel as PerChannel
    from lowbit.granularity import PerGroup as PerGroup
    from lowbit.granularity import PerTensor as PerTensor
    from lowbit.methods.curves.choose import choose_path as choose_path
    from lowbit.methods.curves.codec import Codec as Codec
    from lowbit.methods.curves.decoders import Decoder as Decoder
    from lowbit.methods.curves.fit import fit_head as fit_head
    from lowbit.methods.curves.heads import Encoded as Encoded
    from lowbit.methods.curves.heads import attach_decoder as attach_decoder
    from lowbit.methods.curves.heads import wrap_head as wrap_head
    from lowbit.methods.curves.measures import output_errors as output_errors
    from lowbit.methods.curves.run import CurveOutput as CurveOutput
    from lowbit.methods.curves.run import curve_output as curve_output
    from lowbit.methods.discrimination.estimators import BinaryQuantizer as BinaryQuantizer
    from lowbit.methods.discrimination.estimators import TernaryQuantizer as TernaryQuantizer
    from lowbit.methods.discrimination.heads import CodedHead as CodedHead
    from lowbit.methods.discrimination.heads import coded_head as coded_head
    from lowbit.methods.discrimination.histograms import Histograms as Histograms
    from lowbit.methods.discrimination.layers import layer_features as layer_features
    from lowbit.methods.discrimination.measure import discrimination as discrimination
    from lowbit.methods.discrimination.packed import Packed as Packed
    from lowbit.methods.discrimination.packed import PackedKNeighborsClassifier as PackedKNeighborsClassifier
    from lowbit.methods.discrimination.sweep import ArrayFiles as ArrayFiles
    from lowbit.methods.discrimination.sweep import count_features as count_features
    from lowbit.methods.discrimination.tracing import FeatureTrace as FeatureTrace
    from lowbit.methods.discrimination.tracing import trace_features as trace_features
    from lowbit.methods.discrimination.verdict import judge as judge
    from lowbit.methods.distillation.run import Distillation as Distillation
    from lowbit.methods.distillation.run import distill as distill
    from lowbit.methods.distillation.teacher import check_teacher as check_teacher
    from lowbit.methods.factorization.run import Factorization as Factorization
    from lowbit.methods.factorization.run import factorize as factorize
    from lowbit.methods.factorization.variants import chain_variants as chain_variants
    from lowbit.methods.search.architecture.elastic import ElasticMobileNet as ElasticMobileNet
    from lowbit.methods.search.architecture.plan import Plan as Plan
    from lowbit.methods.search.architecture.plan import Stage as Stage
    from lowbit.methods.search.architecture.run import JointSearch as JointSearch
    from lowbit.methods.search.architecture.run import search_architecture as search_architecture
    from lowbit.methods.search.policy import Controller as Controller
    from lowbit.methods.search.run import Search as Search
    from lowbit.methods.search.run import search as search
    from lowbit.pilot.abtest import compare as compare
    from lowbit.pilot.comparison import Comparison as Comparison
    from lowbit.post_training.correction import correct_moments as correct_moments
    from lowbit.post_training.equalization import equalize as equalize
    from lowbit.post_training.levels import post_train as post_train
    from lowbit.post_training.ranges import choose_ranges as choose_ranges
    from lowbit.post_training.reconstruction import reconstruct as reconstruct
    from lowbit.post_training.reconstruction import tune as tune
    from lowbit.post_training.rounding import fit_scales as fit_scales
    from lowbit.post_training.rounding import round_weights as round_weights
    from lowbit.post_training.sensitivity import widen as widen
    from lowbit.quantization import Coverage as Coverage
    from lowbit.quantization import calibrate as calibrate
    from lowbit.quantization import coverage as coverage
    from lowbit.quantization import freeze as freeze
    from lowbit.quantization import quantize as quantize
    from lowbit.recipe import Recipe as Recipe
    from lowbit.recipe import Rule as Rule

__version__ = "0.1.0"

_HOMES = {
    "lowbit.allocation": ("Budget",),
    "lowbit.costs": ("Cost", "MeasuredCosts", "cost"),
    "lowbit.errors": ("LowbitError", "TrainingWarning"),
    "lowbit.export.measured": ("measure_formats",),
    "lowbit.export.onnx": ("Exported", "export_onnx"),
    "lowbit.export.verify": ("Verification", "verify"),
    "lowbit.export.watching": ("Watched", "watch"),
    "lowbit.formats": ("Binary", "Block", "Float", "Int", "MidRise", "Ternary", "parse"),
    "lowbit.granularity": ("PerChannel", "PerGroup", "PerTensor"),
    "lowbit.methods.curves.choose": ("choose_path",),
    "lowbit.methods.curves.codec": ("Codec",),
    "lowbit.methods.curves.decoders": ("Decoder",),
    "lowbit.methods.curves.fit": ("fit_head",),
    "lowbit.methods.curves.heads": ("Encoded", "attach_decoder", "wrap_head"),
    "lowbit.methods.curves.measures": ("output_errors",),
    "lowbit.methods.curves.run": ("CurveOutput", "curve_output"),
    "lowbit.methods.discrimination.estimators": (
        "BinaryQuantizer",
        "TernaryQuantizer",
    ),
    "lowbit.methods.discrimination.heads": ("CodedHead", "coded_head"),
    "lowbit.methods.discrimination.histograms": ("Histograms",),
    "lowbit.methods.discrimination.layers": ("layer_features",),
    "lowbit.methods.discrimination.measure": ("discrimination",),
    "lowbit.methods.discrimination.packed": (
        "Packed",
        "PackedKNeighborsClassifier",
    ),
    "lowbit.methods.discrimination.sweep": ("ArrayFiles", "count_features"),
    "lowbit.methods.discrimination.tracing": (
        "FeatureTrace",
        "trace_features",
    ),
    "lowbit.methods.discrimination.verdict": ("judge",),
    "lowbit.methods.distillation.run": ("Distillation", "distill"),
    "lowbit.methods.distillation.teacher": ("check_teacher",),
    "lowbit.methods.factorization.run": ("Factorization", "factorize"),
    "lowbit.methods.factorization.variants": ("chain_variants",),
    "lowbit.methods.search.architecture.elastic": ("ElasticMobileNet",),
    "lowbit.methods.search.architecture.plan": ("Plan", "Stage"),
    "lowbit.methods.search.architecture.run": ("JointSearch", "search_architecture"),
    "lowbit.methods.search.policy": ("Controller",),
    "lowbit.methods.search.run": ("Search", "search"),
    "lowbit.pilot.abtest": ("compare",),
    "lowbit.pilot.comparison": ("Comparison",),
    "lowbit.post_training.correction": ("correct_moments",),
    "lowbit.post_training.equalization": ("equalize",),
    "lowbit.post_training.levels": ("post_train",),
    "lowbit.post_training.ranges": ("choose_ranges",),
    "lowbit.post_training.reconstruction": (
        "reconstruct",
        "tune",
    ),
    "lowbit.post_training.rounding": (
        "fit_scales",
        "round_weights",
    ),
    "lowbit.post_training.sensitivity": ("widen",),
    "lowbit.quantization": ("Coverage", "calibrate", "coverage", "freeze", "quantize"),
    "lowbit.recipe": ("Recipe", "Rule"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
