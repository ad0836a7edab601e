// Histograms of features and neighbors among rows of bits, with the numbers that bits.py gives in numpy.
//
// No threads here: a call does the features, or the queries, from `first` to before `last`, and calls for different
// ones may run at once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// Histograms ----------------------------------------------------------------------------------------------------------

constexpr int64_t FULL = 65535;  // rows after which a counter of 16 bits may be full
constexpr int64_t BLOCK = 64;    // features done at a time, so that their counters stay in the nearest caches
constexpr int64_t ROWS = 1024;   // done at a time for each block of features
constexpr int64_t AHEAD = 16;    // rows from the one that is counted to the one that is fetched

// Bins of some features of a row, each with its feature's place among the counters of a block, `places`, added; and
// what they add to the sums of the row's class.
template <typename T>
inline __attribute__((always_inline)) void find_bins(const T* __restrict x, const T* __restrict center,
                                                     const T* __restrict scale, const T* __restrict places, T end,
                                                     int64_t features, T* __restrict sums, T* __restrict squares,
                                                     uint16_t* __restrict bins) {
    for (int64_t j = 0; j < features; ++j) {
        T t = (x[j] - center[j]) * scale[j];
        sums[j] += t;
        squares[j] += t * t;
        t = t < end ? t : end;  // NaN too
        t = t > -end ? t : -end;
        bins[j] = uint16_t(int32_t(std::floor(t) + std::ceil(t) + places[j]));
    }
}

// Counts some features of all rows, whose class's counters lie `apart`. The bins of the next row are found while those
// of one are counted: the former takes vector units and waits for memory, the latter neither.
template <typename T>
inline __attribute__((always_inline)) void count_rows(const T* x, const int32_t* labels, const T* center,
                                                      const T* scale, const T* places, T end, int64_t d,
                                                      int64_t features, int64_t rows, int64_t apart, int64_t sums_apart,
                                                      uint16_t* counters, T* sums, T* squares) {
    alignas(64) uint16_t bins[2][BLOCK];
    const auto find = [&](int64_t i) {
        const int64_t own = labels[i] * sums_apart;
        find_bins(x + i * d, center, scale, places, end, features, sums + own, squares + own, bins[i & 1]);
    };
    find(0);
    for (int64_t i = 0; i < rows; ++i) {
        const T* const row = x + i * d;
        if (i + AHEAD < rows)
            for (int64_t f = 0; f < features; f += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + AHEAD * d + f);
        if (i + 1 < rows) find(i + 1);
        uint16_t* const own = counters + labels[i] * apart;
        for (int64_t f = 0; f < features; ++f) ++own[bins[i & 1][f]];
    }
}

template <typename T>
void histogram(const T* x, const int32_t* labels, const T* center, const T* scale, int64_t* counts, double* sums,
               double* squares, int64_t n, int64_t d, int64_t classes, int64_t half, int64_t first, int64_t last) {
    const int64_t features = last - first, width = 2 * half + 1;
    const int64_t block = std::max<int64_t>(1, std::min(BLOCK, 65535 / width));
    const int64_t apart = features * width;
    const T end = T(half / 2);
    std::vector<uint16_t> counters(classes * apart);
    std::vector<T> places(features), some_sums(classes * features), some_squares(classes * features);
    for (int64_t j = 0; j < features; ++j) places[j] = T(j % block * width + half);

    int64_t counted = 0;
    for (int64_t start = 0; start < n; start += ROWS) {
        const int64_t rows = std::min(ROWS, n - start);
        for (int64_t j = 0; j < features; j += block) {
            const int64_t some = std::min(block, features - j), at = first + j;
            const T* from_x = x + start * d + at;
            uint16_t* to = counters.data() + j * width;
            const auto count = [&](int64_t many) {
                count_rows(from_x, labels + start, center + at, scale + at, &places[j], end, d, many, rows, apart, features,
                           to, &some_sums[j], &some_squares[j]);
            };
            if (some == BLOCK)  // a constant, for loops without ends to tidy
                count(BLOCK);
            else
                count(some);
        }
        for (int64_t c = 0; c < classes; ++c) {  // as few numbers as these are added exactly enough
            for (int64_t j = 0; j < features; ++j) {
                sums[c * d + first + j] += double(some_sums[c * features + j]);
                squares[c * d + first + j] += double(some_squares[c * features + j]);
            }
        }
        std::fill(some_sums.begin(), some_sums.end(), T(0));
        std::fill(some_squares.begin(), some_squares.end(), T(0));
        counted += rows;
        if (counted + ROWS > FULL || start + rows == n) {
            for (int64_t c = 0; c < classes; ++c) {
                const uint16_t* from = counters.data() + c * apart;
                int64_t* to = counts + (c * d + first) * width;
                for (int64_t i = 0; i < apart; ++i) to[i] += from[i];
            }
            std::fill(counters.begin(), counters.end(), 0);
            counted = 0;
        }
    }
}

// Neighbors -----------------------------------------------------------------------------------------------------------

constexpr int LANES = 8;               // rows done at a time
constexpr int64_t TILE = 32768;        // bytes of rows that a block of queries passes over, in the first-level cache
constexpr int64_t QUERIES = 256;       // of a block, or as many as have
constexpr int64_t CANDIDATES = 1 << 20;

typedef uint64_t Words __attribute__((vector_size(64)));
typedef int64_t Counts __attribute__((vector_size(64)));
typedef double Reals __attribute__((vector_size(64)));

inline __attribute__((always_inline)) Words popcount(Words x) {
#ifdef __AVX512VPOPCNTDQ__
    return Words(_mm512_popcnt_epi64(__m512i(x)));
#else
    for (int i = 0; i < LANES; ++i) x[i] = __builtin_popcountll(x[i]);
    return x;
#endif
}

// A bit for each lane that is at most `limit`.
inline __attribute__((always_inline)) unsigned at_most(Counts keys, int64_t limit) {
#ifdef __AVX512F__
    return _mm512_cmple_epi64_mask(__m512i(keys), _mm512_set1_epi64(limit));
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= unsigned(keys[i] <= limit) << i;
    return bits;
#endif
}

inline __attribute__((always_inline)) unsigned at_most(Reals keys, double limit) {
#ifdef __AVX512F__
    return _mm512_cmp_pd_mask(__m512d(keys), _mm512_set1_pd(limit), _CMP_LE_OQ);
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= unsigned(keys[i] <= limit) << i;
    return bits;
#endif
}

template <typename Key>
struct Candidate {
    Key key;
    int64_t row;
    bool operator<(const Candidate& other) const { return key != other.key ? key < other.key : row < other.row; }
};

// The k nearest rows so far, and how many of each class are as far as the last of them.
template <typename Key>
struct Found {
    Key limit = std::numeric_limits<Key>::max();  // of what may still be among the nearest, or tie with the last
    bool full = false;                            // whether k rows within the limit are known
    std::vector<Candidate<Key>> candidates;
    std::vector<int64_t> tied;  // by class, at the limit, beyond the candidates

    // Rows come in rising order, so one at the limit lies behind the k that are known, and only counts as tied.
    void add(Key key, int64_t row, int64_t k, const int32_t* labels) {
        if (full && key == limit) {
            if (labels) ++tied[labels[row]];
            return;
        }
        candidates.push_back({key, row});
        if (candidates.size() == candidates.capacity()) prune(k, labels);
    }

    // Keeps the k nearest, and lowers the limit to the last of them.
    void prune(int64_t k, const int32_t* labels) {
        std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end());
        const Key farthest = candidates[k - 1].key;
        if (!full || farthest != limit) std::fill(tied.begin(), tied.end(), 0);
        if (labels)
            for (size_t i = k; i < candidates.size(); ++i)
                if (candidates[i].key == farthest) ++tied[labels[candidates[i].row]];
        candidates.resize(k);
        limit = farthest;
        full = true;
    }
};

struct Problem {
    const uint64_t *base, *queries;  // [planes, n, words], [planes, count, words]
    const int32_t* labels;           // [n], or none
    double* keys;                    // [count, k]
    int64_t *rows, *tied;            // [count, k], [count, classes]
    int64_t planes, words, n, count, k, classes, opposite;
};

// How the rows of a tile are compared with a query: by whole numbers h + opposite * b, or for cosine by
// -dot |dot| / |x|^2, see bits.py.
template <int PLANES, bool OPPOSITE, bool COSINE>
struct Search : Problem {
    using Key = std::conditional_t<COSINE, double, int64_t>;
    using Keys = std::conditional_t<COSINE, Reals, Counts>;

    std::vector<Words> tile;    // [groups of 8 rows, words, planes]
    std::vector<Counts> norms;  // of the rows of each group; cosine only

    explicit Search(const Problem& problem) : Problem(problem) {}

    void load(int64_t start, int64_t groups) {
        for (int64_t g = 0; g < groups; ++g) {
            Words* to = tile.data() + g * words * PLANES;
            Words norm = {};
            for (int64_t w = 0; w < words; ++w)
                for (int p = 0; p < PLANES; ++p) {
                    Words x;
                    for (int64_t i = 0; i < LANES; ++i) {
                        const int64_t row = std::min(start + g * LANES + i, n - 1);  // the last one fills the group
                        x[i] = base[(p * n + row) * words + w];
                    }
                    to[w * PLANES + p] = x;
                    if (COSINE) norm += popcount(x);
                }
            if (COSINE) norms[g] = Counts(norm);
        }
    }

    // Out of the way of `pass`, which rarely needs it.
    __attribute__((noinline)) void admit(const Keys& keys, unsigned near, int64_t row, Found<Key>& found) const {
        for (int i = 0; i < LANES; ++i)
            if ((near >> i & 1) && row + i < n && keys[i] <= found.limit) found.add(keys[i], row + i, k, labels);
    }

    void pass(int64_t query, int64_t norm, int64_t start, int64_t groups, Found<Key>& found) const {
        const uint64_t* const p = queries + query * words;
        const uint64_t* const m = p + count * words;  // the second plane, if there is one
        const int64_t length = words;
        const Words* x = tile.data();
        Key limit = found.limit;
        for (int64_t g = 0; g < groups; ++g) {
            Words h = {}, b = {};
            for (int64_t w = 0; w < length; ++w, x += PLANES) {
                const Words first = Words{} + p[w];
                if constexpr (PLANES == 1) {
                    h += popcount(first ^ x[0]);
                } else {
                    const Words second = Words{} + m[w];
                    h += popcount((first ^ x[0]) | (second ^ x[1]));
                    if constexpr (OPPOSITE) b += popcount((first & x[1]) | (second & x[0]));
                }
            }
            Keys keys;
            if constexpr (COSINE) {
                const Counts other = norms[g], dot = (norm + other - Counts(h) - Counts(b)) / 2 - Counts(b);
                const Reals real = __builtin_convertvector(dot, Reals);
                for (int i = 0; i < LANES; ++i)
                    keys[i] = -real[i] * std::fabs(real[i]) / double(std::max<int64_t>(other[i], 1));
            } else {
                keys = Counts(h) + opposite * Counts(b);
            }
            if (const unsigned near = at_most(keys, limit)) {
                admit(keys, near, start + g * LANES, found);
                limit = found.limit;
            }
        }
    }

    void run(int64_t first, int64_t last) {
        const int64_t step = std::max<int64_t>(1, TILE / (words * PLANES * int64_t(sizeof(Words)))) * LANES;
        tile.resize(step / LANES * words * PLANES);
        if (COSINE) norms.resize(step / LANES);
        const int64_t room = 2 * k + 64;  // candidates of a query
        const int64_t block = std::max<int64_t>(1, std::min(QUERIES, CANDIDATES / room));
        for (int64_t start = first; start < last; start += block) {
            const int64_t some = std::min(block, last - start);
            std::vector<Found<Key>> found(some);
            std::vector<int64_t> lengths(some);
            for (int64_t q = 0; q < some; ++q) {
                found[q].candidates.reserve(room);
                found[q].tied.resize(classes);
                if (COSINE)
                    for (int64_t w = 0; w < planes * words; ++w)
                        lengths[q] += __builtin_popcountll(
                            queries[(w / words * count + start + q) * words + w % words]);
            }
            for (int64_t row = 0; row < n; row += step) {
                const int64_t groups = (std::min(step, n - row) + LANES - 1) / LANES;
                load(row, groups);
                for (int64_t q = 0; q < some; ++q) pass(start + q, lengths[q], row, groups, found[q]);
            }
            for (int64_t q = 0; q < some; ++q) write(start + q, found[q]);
        }
    }

    void write(int64_t query, Found<Key>& found) {
        found.prune(k, labels);
        std::sort(found.candidates.begin(), found.candidates.end());
        for (int64_t i = 0; i < k; ++i) {
            const Candidate<Key>& one = found.candidates[i];
            keys[query * k + i] = double(one.key);
            rows[query * k + i] = one.row;
            if (labels && one.key == found.limit) ++found.tied[labels[one.row]];
        }
        std::copy(found.tied.begin(), found.tied.end(), tied + query * classes);
    }
};

}  // namespace

extern "C" {

// `scale` in steps of the grid, whose ends are +- half / 2 steps; sums and squares are of steps too.
void lowbit_histogram_float(const float* x, const int32_t* labels, const float* center, const float* scale,
                            int64_t* counts, double* sums, double* squares, int64_t n, int64_t d, int64_t classes,
                            int64_t half, int64_t first, int64_t last) {
    histogram(x, labels, center, scale, counts, sums, squares, n, d, classes, half, first, last);
}

void lowbit_histogram_double(const double* x, const int32_t* labels, const double* center, const double* scale,
                             int64_t* counts, double* sums, double* squares, int64_t n, int64_t d, int64_t classes,
                             int64_t half, int64_t first, int64_t last) {
    histogram(x, labels, center, scale, counts, sums, squares, n, d, classes, half, first, last);
}

// `opposite` is the factor of b in a whole-numbered key, or -1 for cosine.
void lowbit_nearest(const uint64_t* base, const uint64_t* queries, const int32_t* labels, double* keys, int64_t* rows,
                    int64_t* tied, int64_t planes, int64_t words, int64_t n, int64_t count, int64_t k, int64_t classes,
                    int64_t opposite, int64_t first, int64_t last) {
    const Problem problem{base, queries, labels, keys, rows, tied, planes, words, n, count, k, classes, opposite};
    if (planes == 1 && opposite < 0)
        Search<1, false, true>(problem).run(first, last);
    else if (planes == 1)
        Search<1, false, false>(problem).run(first, last);
    else if (opposite < 0)
        Search<2, true, true>(problem).run(first, last);
    else if (opposite == 0)
        Search<2, false, false>(problem).run(first, last);
    else
        Search<2, true, false>(problem).run(first, last);
}

}  // extern "C"
