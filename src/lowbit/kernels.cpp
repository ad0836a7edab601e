// Fake quantization in one pass forward and one backward, bit for bit what lowbit/ops.py computes with torch.
//
// A format is a functor f(v, o): the grid value nearest to v + o, less o, where v = x / scale and o is the zero point.
// It has no branches, so that compilers vectorize a loop over it: a choice is `a ? b : c`, both computed. Comparisons
// with NaN are false, and each functor is written such that NaN then comes out.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int64_t WORTH_A_SECOND_THREAD = 32768;  // numbers; torch's own threshold, at::internal::GRAIN_SIZE

// `rows` rows of `row` numbers, each cut into runs of `run` numbers (the last may be shorter) that share a scale: run k
// of row r has scale number r * scales_of_row + k. A run is worked on in pieces of `piece` numbers.
struct Layout {
    int64_t rows, row, run, scales_of_row, piece;
};

// Which numbers exist; what a format has no use for is 0.
struct Grid {
    int32_t kind;           // which functor, see `with_format`
    int32_t mantissa;       // floats: bits of it
    float low, high;        // ends of the grid
    float threshold;        // ternary: 0 up to here; binary: `high` from here on
    float smallest_normal;  // floats
    float zero;             // floats: added at the end, 0 to turn -0 into 0, else -0, which changes nothing
};

// What rounding passes back: `GradientRule` of lowbit/ops.py, without the share, which is for whole sums.
struct Rule {
    float correction;  // delta / (high - low); 0 is the straight-through estimator
    float rounding;    // 1 where the rounding error inside the range moves its ends, else 0
};

inline float clamp(float q, float low, float high) {
    q = q < low ? low : q;
    return q > high ? high : q;
}

struct Integer : Grid {
    float operator()(float v, float) const { return clamp(std::rint(v), low, high); }
};

struct Affine : Grid {
    float operator()(float v, float o) const { return clamp(std::rint(v) + o, low, high) - o; }
};

struct Float : Grid {
    float operator()(float v, float) const {
        const float magnitude = std::fabs(v);
        // normal: round the bit pattern to `mantissa` bits, ties to even; a carry runs on into the exponent
        const uint32_t spare = 23 - mantissa;
        uint32_t bits;
        std::memcpy(&bits, &magnitude, 4);
        bits = (bits + (1u << (spare - 1)) - 1 + (bits >> spare & 1)) >> spare << spare;
        float normal;
        std::memcpy(&normal, &bits, 4);
        // subnormal: all a step apart, as float32 numbers are from 2^23 steps on
        const float steps = smallest_normal * float(1u << spare);
        const float subnormal = (magnitude + steps) - steps;
        const float q = magnitude < smallest_normal ? subnormal : normal;
        const float rounded = std::copysign(q > high ? high : q, v) + zero;
        return v != v ? v : rounded;
    }
};

struct Ternary : Grid {
    float operator()(float v, float) const {
        const float q = std::fabs(v) <= threshold ? 0.0f : std::copysign(1.0f, v);
        return v != v ? v : q;
    }
};

struct Binary : Grid {
    float operator()(float v, float) const {
        const float q = v >= threshold ? high : low;
        return v != v ? v : q;
    }
};

struct MidRise : Grid {
    float operator()(float v, float) const { return clamp(std::floor(v / 2) * 2 + 1, low, high); }
};

template <class Work> void with_format(const Grid& grid, Work work) {
    switch (grid.kind) {
        case 0: return work(Integer{grid});
        case 1: return work(Affine{grid});
        case 2: return work(Float{grid});
        case 3: return work(Ternary{grid});
        case 4: return work(Binary{grid});
        case 5: return work(MidRise{grid});
    }
}

// Calls work(piece, begin, count, scale) for each piece: its number, its first element, how many, and their scale.
template <class Work> void for_each_piece(const Layout& of, int threads, Work work) {
    const int64_t runs = (of.row + of.run - 1) / of.run, parts = (of.run + of.piece - 1) / of.piece;
    const bool share = threads > 1 && of.rows * of.row > WORTH_A_SECOND_THREAD;
#pragma omp parallel for collapse(3) schedule(static) num_threads(threads) if (share)
    for (int64_t r = 0; r < of.rows; ++r)
        for (int64_t k = 0; k < runs; ++k)
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t begin = k * of.run + part * of.piece, end = std::min(of.row, (k + 1) * of.run);
                const int64_t count = std::clamp<int64_t>(end - begin, 0, of.piece);
                work((r * runs + k) * parts + part, r * of.row + begin, count, r * of.scales_of_row + k);
            }
}

template <class Format>
void round(Format format, const float* __restrict x, float* __restrict y, int64_t count, float scale, float o) {
    for (int64_t i = 0; i < count; ++i) y[i] = format(x[i] / scale, o) * scale;
}

// What one number x with upstream gradient g adds to each gradient; `corrected` where the rule's correction is not 0.
// Inside the range everything is finite, so that 0 times it is 0; outside, what is computed for the inside is dropped.
template <class Format, bool corrected> struct Gradient {
    Format format;
    Rule rule;
    float scale, o;

    bool inside(float v) const { return (v >= format.low - o) & (v <= format.high - o); }

    // The factor on g is 1 + change.
    float change(float v, float q, float g) const {
        return corrected ? std::copysign(1.0f, g) * (v - q) * rule.correction : 0.0f;
    }

    float of_x(float x, float g) const {
        const float v = x / scale, q = format(v, o);
        return g * (inside(v) ? 1 + change(v, q, g) : 0.0f);
    }

    float of_scale(float x, float g) const {
        const float v = x / scale, q = format(v, o);
        return g * (inside(v) ? rule.rounding * (q - (1 + change(v, q, g)) * v) : q);
    }

    // In units of the scale.
    float of_zero_point(float x, float g) const {
        const float v = x / scale, q = format(v, o);
        return g * (inside(v) ? rule.rounding * change(v, q, g) : -1.0f);
    }
};

template <class Term> float sum(int64_t count, Term term) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += term(i);
    return sum;
}

// What is wanted of `dx`, `ds` and `dz`, one piece of each; the first two, where both are, in one loop.
template <class Gradient>
void differentiate(Gradient gradient, const float* __restrict x, const float* __restrict g, int64_t count,
                   float* __restrict dx, float* __restrict ds, float* __restrict dz) {
    if (dx && ds)
        *ds = sum(count, [=](int64_t i) {
            const float slope = gradient.of_scale(x[i], g[i]);
            dx[i] = gradient.of_x(x[i], g[i]);
            return slope;
        });
    else if (dx)
        for (int64_t i = 0; i < count; ++i) dx[i] = gradient.of_x(x[i], g[i]);
    else if (ds)
        *ds = sum(count, [=](int64_t i) { return gradient.of_scale(x[i], g[i]); });
    if (dz) *dz = sum(count, [=](int64_t i) { return gradient.of_zero_point(x[i], g[i]); });
}

}  // namespace

// `zero_point` is null for 0.
extern "C" void lowbit_forward(const Grid* grid, const Layout* layout, int threads, const float* x, const float* scale,
                               const float* zero_point, float* y) {
    with_format(*grid, [=](auto format) {
        for_each_piece(*layout, threads, [=](int64_t, int64_t at, int64_t count, int64_t s) {
            round(format, x + at, y + at, count, scale[s], zero_point ? zero_point[s] : 0.0f);
        });
    });
}

// The gradients `dx` of x and, a sum for each piece, `ds` of the scales and `dz` of the zero points, the latter in
// units of the scale; each is null where nobody wants it.
extern "C" void lowbit_backward(const Grid* grid, const Layout* layout, int threads, const float* x, const float* scale,
                                const float* zero_point, const Rule* rule, const float* g, float* dx, float* ds,
                                float* dz) {
    const auto run = [=](auto format, auto corrected) {
        for_each_piece(*layout, threads, [=](int64_t piece, int64_t at, int64_t count, int64_t s) {
            const float o = zero_point ? zero_point[s] : 0.0f;
            const Gradient<decltype(format), decltype(corrected)::value> gradient{format, *rule, scale[s], o};
            differentiate(gradient, x + at, g + at, count, dx ? dx + at : nullptr, ds ? ds + piece : nullptr,
                          dz ? dz + piece : nullptr);
        });
    };
    with_format(*grid, [=](auto format) {
        return rule->correction != 0 ? run(format, std::true_type{}) : run(format, std::false_type{});
    });
}
