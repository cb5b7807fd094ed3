// Products of weights in blocks with rows of eight-bit numbers, and the forward pass of a Llama-like decoder made of
// them. Called by speech_mtp/native/__init__.py, which compiles it for the machine it runs on.
//
// Weights. A row of a matrix [N, K] is cut into blocks of 32 numbers. A block of kind 4 is `scale * q + least` with q in
// 0..15, one of kind 8 is `scale * q` with q in -127..127; scale and least are half-precision numbers (the blocks Q4_1
// and Q8_0 of GGUF). 16 rows make a tile, which is stored block by block, and in it four numbers of each of the 16 rows
// after the other:
//
//     kind 4:  4 x [16 rows x 4 bytes], 16 scales, 16 leasts            320 bytes
//              the low half of a byte is number 4 g + i of the block, the high half number 16 + 4 g + i
//     kind 8:  8 x [16 rows x 4 bytes], 16 scales                        544 bytes
//
// Inputs. A row of floats is cut alike; a block becomes integers in -127..127 and the scale max |x| / 127.
//
// A result is the sum over blocks, first to last, of
//
//     (float)(sum of q x) * (scale * a)                  a: the scale of the block of the input
//     + least * (a * (float)(sum of x))                  kind 4 alone
//
// The sums of integers are exact, and floats are added in this order whatever the processor, the number of rows or of
// threads: a row gives the same numbers alone and among others. Compile with -ffp-contract=off.

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef _OPENMP
extern int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define BLOCK 32
#define TILE 16
#define WIDEST 256  // numbers of a head

typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef float f16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4)));

typedef struct {
    int64_t kind, outputs, inputs;
    const uint8_t *tiles;
    const float *bias;
} Linear;

// Rows of inputs as integers, and for each block a scale, the sum of its integers and that sum scaled.
typedef struct {
    int64_t inputs;
    int8_t *bytes;
    int32_t *total;
    float *scale, *sum;
} Rows;

static inline int64_t tile_bytes(int64_t kind) { return kind == 4 ? 320 : 544; }

// ---- vectors --------------------------------------------------------------------------------------------------------
static inline f8 load8(const float *p) { return *(const f8 *)p; }
static inline void store8(float *p, f8 v) { *(f8 *)p = v; }
static inline f8 all8(float v) { return (f8){v, v, v, v, v, v, v, v}; }

static inline float one_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, body = h & 0x7fff, bits;
    if (body >= 0x7c00) bits = 0x7f800000 | (body & 0x3ff) << 13;
    else if (body >= 0x400) bits = (body << 13) + 0x38000000;
    else {  // a multiple of 2^-24
        float small = (float)body * 5.9604644775390625e-8f;
        memcpy(&bits, &small, 4);
    }
    bits |= sign;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// The sum of the eight numbers of each of eight vectors, in an order of its own that is always the same.
static inline f8 sums8(const f8 v[8]) {
    f8 out;
#ifdef __AVX2__
    __m256 a = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), b = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
    __m256 c = _mm256_hadd_ps((__m256)v[4], (__m256)v[5]), d = _mm256_hadd_ps((__m256)v[6], (__m256)v[7]);
    __m256 e = _mm256_hadd_ps(a, b), f = _mm256_hadd_ps(c, d);
    out = (f8)_mm256_add_ps(_mm256_permute2f128_ps(e, f, 0x20), _mm256_permute2f128_ps(e, f, 0x31));
#else
    for (int i = 0; i < 8; i++)
        out[i] = ((v[i][0] + v[i][1]) + (v[i][2] + v[i][3])) + ((v[i][4] + v[i][5]) + (v[i][6] + v[i][7]));
#endif
    return out;
}

static inline float sum8(f8 v) {
    f8 all[8] = {v, v, v, v, v, v, v, v};
    return sums8(all)[0];
}

// x y + z; rounded once where the processor can.
static inline f8 fma8(f8 x, f8 y, f8 z) {
#if defined(__FMA__) && defined(__AVX2__)
    return (f8)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
    return x * y + z;
#endif
}

// exp, to about two units in the last place; 0 below -87.
static inline f8 exp8(f8 x) {
    const f8 low = all8(-87.0f), high = all8(88.0f);
    i8 gone = x < low;
    x = (f8)(((i8)low & gone) | ((i8)x & ~gone));
    i8 large = x > high;
    x = (f8)(((i8)high & large) | ((i8)x & ~large));
    f8 shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to a whole number
    f8 n = shifted - 12582912.0f;
    f8 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    f8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    i8 power = (__builtin_convertvector(n, i8) + 127) << 23;
    f8 out = p * (f8)power;
    return (f8)((i8)out & ~gone);
}

// x / (1 + exp(-x))
static inline f8 silu8(f8 x) { return x / (exp8(-x) + 1.0f); }

// ---- inputs ---------------------------------------------------------------------------------------------------------
static inline float largest8(f8 v) {
#ifdef __AVX2__
    __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#else
    float largest = v[0];
    for (int i = 1; i < 8; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
#endif
}

// The larger of two numbers, eight times; `most` where `v` is no number.
static inline f8 larger8(f8 most, f8 v) {
    i8 larger = v > most;
    return (f8)(((i8)v & larger) | ((i8)most & ~larger));
}

static inline int all_true(i8 mask) {
#ifdef __AVX2__
    return _mm256_movemask_epi8((__m256i)mask) == -1;
#else
    for (int i = 0; i < 8; i++)
        if (!mask[i]) return 0;
    return 1;
#endif
}

// 32 whole numbers in -127..127 as bytes; their sum.
static inline int32_t to_bytes(const i8 v[4], int8_t *bytes) {
    i8 sums = v[0] + v[1] + v[2] + v[3];
    int32_t all = 0;
#ifdef __AVX2__
    __m256i low = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]), high = _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]);
    __m256i mixed = _mm256_packs_epi16(low, high);  // fours of v[0], v[1], v[2], v[3], each first its lower half
    mixed = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)bytes, mixed);
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128((__m256i)sums), _mm256_extracti128_si256((__m256i)sums, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    all = _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
#else
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 8; j++) bytes[8 * i + j] = (int8_t)v[i][j];
    for (int i = 0; i < 8; i++) all += sums[i];
#endif
    return all;
}

static void quantise_block(const float *x, int8_t *bytes, int32_t *total, float *scale, float *sum) {
    f8 most = all8(0.0f);
    f8 v[4];
    for (int i = 0; i < 4; i++) {
        v[i] = load8(x + 8 * i);
        most = larger8(most, (f8)((i8)v[i] & 0x7fffffff));
    }
    float largest = largest8(most);
    float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;  // what is less counts as nothing
    i8 fine = ~(i8){0}, rounded[4];
    for (int i = 0; i < 4; i++) fine &= v[i] - v[i] == v[i] - v[i];  // not of infinity, nor of what is no number
    if (!all_true(fine)) {
        memset(bytes, 0, BLOCK);
        *total = 0;
        *scale = *sum = NAN;
        return;
    }
    for (int i = 0; i < 4; i++) {
        f8 y = v[i] * inverse;
        rounded[i] = __builtin_convertvector((y + 12582912.0f) - 12582912.0f, i8);  // half to even
    }
    *total = to_bytes(rounded, bytes);
    *scale = largest / 127.0f;
    *sum = *scale * (float)*total;
}

static void quantise(const float *x, const Rows *rows, int64_t row, int64_t from, int64_t to) {
    int64_t blocks = rows->inputs / BLOCK;
    for (int64_t b = from; b < to; b++) {
        int64_t at = row * rows->inputs + b * BLOCK, block = row * blocks + b;
        quantise_block(x + b * BLOCK, rows->bytes + at, rows->total + block, rows->scale + block, rows->sum + block);
    }
}

// ---- products -------------------------------------------------------------------------------------------------------
// A piece of a tile is as many of its rows as a vector has numbers (LANES). blockN: the whole-number products of one
// block of a piece with the same block of `count` rows; loops over rows must be unrolled, so that sums stay in registers.
#define UNROLL _Pragma("GCC unroll 8")
#define EACH_ROW UNROLL for (int r = 0; r < count; r++)
#define INLINE static inline __attribute__((always_inline))

// vpdpbusd adds four products of a byte without a sign and one with a sign to each number of a vector.
#if defined(__AVX512VNNI__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define LANES 16
#define ROWS 8
typedef f16 vf;
typedef i16 vi;
typedef __m512i whole;
INLINE whole load_whole(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE whole all_of(int32_t four) { return _mm512_set1_epi32(four); }
INLINE whole low_halves(whole x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE whole high_halves(whole x) { return low_halves(_mm512_srli_epi16(x, 4)); }
INLINE whole raised(whole x) { return _mm512_xor_si512(x, _mm512_set1_epi8((char)128)); }
#define DOT4 _mm512_dpbusd_epi32
#else
#define LANES 8
#define ROWS 4
typedef f8 vf;
typedef i8 vi;
#ifdef __AVX2__
typedef __m256i whole;
INLINE whole load_whole(const uint8_t *p) { return _mm256_loadu_si256((const whole *)p); }
INLINE whole all_of(int32_t four) { return _mm256_set1_epi32(four); }
INLINE whole low_halves(whole x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE whole high_halves(whole x) { return low_halves(_mm256_srli_epi16(x, 4)); }
#ifdef __AVXVNNI__
INLINE whole raised(whole x) { return _mm256_xor_si256(x, _mm256_set1_epi8((char)128)); }
#define DOT4 _mm256_dpbusd_avx_epi32
#endif
#endif
#endif

#ifdef __AVX2__
// Four numbers of an input, for all rows of a piece.
INLINE whole four_of(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return all_of(four);
}
#endif

// `total`: the sums of the inputs of the block, `apart` numbers from row to row.
#ifdef DOT4
// DOT4 takes some five cycles, and each waits for the one before it, so few rows have several sums each.
#define CHAINS (count == 1 ? 4 : count == 2 ? 2 : 1)
#define EACH_CHAIN for (int c = 0; c < CHAINS; c++)

INLINE vi joined(const whole *sums, int chains) {
    vi out = (vi)sums[0];
    for (int c = 1; c < chains; c++) out += (vi)sums[c];
    return out;
}

INLINE void block4(
    int count, const uint8_t *w, const int8_t *x, int64_t stride, const int32_t *total, int64_t apart, vi *out
) {
    (void)total, (void)apart;
    whole acc[ROWS][4];
    EACH_ROW EACH_CHAIN acc[r][c] = all_of(0);
    UNROLL for (int g = 0; g < 4; g++) {
        whole both = load_whole(w + 64 * g), low = low_halves(both), high = high_halves(both);
        EACH_ROW {
            whole *to = acc[r] + 2 * g % CHAINS, *next = acc[r] + (2 * g + 1) % CHAINS;
            *to = DOT4(*to, low, four_of(x + r * stride + 4 * g));
            *next = DOT4(*next, high, four_of(x + r * stride + 16 + 4 * g));
        }
    }
    EACH_ROW out[r] = joined(acc[r], CHAINS);
}

INLINE void block8(
    int count, const uint8_t *w, const int8_t *x, int64_t stride, const int32_t *total, int64_t apart, vi *out
) {
    // (w + 128) x - 128 x, because one factor has no sign
    whole acc[ROWS][4];
    EACH_ROW EACH_CHAIN acc[r][c] = all_of(0);
    UNROLL for (int g = 0; g < 8; g++) {
        whole up = raised(load_whole(w + 64 * g));
        EACH_ROW acc[r][g % CHAINS] = DOT4(acc[r][g % CHAINS], up, four_of(x + r * stride + 4 * g));
    }
    EACH_ROW out[r] = joined(acc[r], CHAINS) - 128 * total[r * apart];
}
#elif defined(__AVX2__)
// Keeps the compiler from adding in another order, for which it would run out of registers.
#define IN_ORDER(x) __asm__("" : "+x"(x))

INLINE void block4(
    int count, const uint8_t *w, const int8_t *x, int64_t stride, const int32_t *total, int64_t apart, vi *out
) {
    (void)total, (void)apart;
    whole acc[ROWS];  // at most 8 x 2 x 15 x 127 = 30,480: fits 16 bits
    EACH_ROW acc[r] = all_of(0);
    UNROLL for (int g = 0; g < 4; g++) {
        whole both = load_whole(w + 64 * g), low = low_halves(both), high = high_halves(both);
        EACH_ROW {
            acc[r] = _mm256_add_epi16(acc[r], _mm256_maddubs_epi16(low, four_of(x + r * stride + 4 * g)));
            IN_ORDER(acc[r]);
            acc[r] = _mm256_add_epi16(acc[r], _mm256_maddubs_epi16(high, four_of(x + r * stride + 16 + 4 * g)));
            IN_ORDER(acc[r]);
        }
    }
    EACH_ROW out[r] = (vi)_mm256_madd_epi16(acc[r], _mm256_set1_epi16(1));
}

INLINE void block8(
    int count, const uint8_t *w, const int8_t *x, int64_t stride, const int32_t *total, int64_t apart, vi *out
) {
    (void)total, (void)apart;
    // |w| times x with the sign of w: at most 2 x 127 x 127 = 32,258 in 16 bits
    whole acc[ROWS];
    EACH_ROW acc[r] = all_of(0);
    UNROLL for (int g = 0; g < 8; g++) {
        whole own = load_whole(w + 64 * g), size = _mm256_abs_epi8(own);
        EACH_ROW {
            whole pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four_of(x + r * stride + 4 * g), own));
            acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            IN_ORDER(acc[r]);
        }
    }
    EACH_ROW out[r] = (vi)acc[r];
}
#else
INLINE void block4(
    int count, const uint8_t *w, const int8_t *x, int64_t stride, const int32_t *total, int64_t apart, vi *out
) {
    (void)total, (void)apart;
    for (int r = 0; r < count; r++)
        for (int n = 0; n < LANES; n++) {
            int32_t sum = 0;
            for (int g = 0; g < 4; g++)
                for (int i = 0; i < 4; i++) {
                    uint8_t both = w[64 * g + 4 * n + i];
                    sum += (both & 15) * x[r * stride + 4 * g + i] + (both >> 4) * x[r * stride + 16 + 4 * g + i];
                }
            out[r][n] = sum;
        }
}

INLINE void block8(
    int count, const uint8_t *w, const int8_t *x, int64_t stride, const int32_t *total, int64_t apart, vi *out
) {
    (void)total, (void)apart;
    for (int r = 0; r < count; r++)
        for (int n = 0; n < LANES; n++) {
            int32_t sum = 0;
            for (int g = 0; g < 8; g++)
                for (int i = 0; i < 4; i++) sum += (int8_t)w[64 * g + 4 * n + i] * x[r * stride + 4 * g + i];
            out[r][n] = sum;
        }
}
#endif

INLINE vf lanes_of_halves(const uint8_t *p) {
#if LANES == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__) && defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vf out;
    for (int i = 0; i < LANES; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = one_half(h);
    }
    return out;
#endif
}

// Weights are read once, in order, and the processor's own prefetching is too late: lines are asked for so many bytes
// before they are needed. (Plain decoding in q4, two threads of a Sapphire Rapids: 5.3 ms a token for 6.7.)
#define AHEAD 4096

INLINE void ask_for(const uint8_t *weights, int64_t size) {
    UNROLL for (int64_t line = 0; line < size; line += 64) __builtin_prefetch(weights + line);
}

// One piece of a tile with `count` rows from `row` on; the sums are written to `out`, or added to it.
INLINE void piece_rows(
    int count, int kind, const Linear *linear, const Rows *rows, int64_t tile, int64_t piece, int64_t row, float *out,
    int64_t stride, int add
) {
    int64_t blocks = linear->inputs / BLOCK, size = tile_bytes(kind), width = rows->inputs;
    const uint8_t *w = linear->tiles + tile * blocks * size + piece * 4 * LANES;
    const uint8_t *halves = linear->tiles + tile * blocks * size + (kind == 4 ? 256 : 512) + piece * 2 * LANES;
    const int8_t *x = rows->bytes + row * width;
    const int32_t *total = rows->total + row * blocks;
    const float *scales = rows->scale + row * blocks, *sums = rows->sum + row * blocks;
    int first_time = row == 0 && piece == 0;
    vf acc[ROWS];
    EACH_ROW acc[r] = (vf){0};
    for (int64_t b = 0; b < blocks; b++) {
        vi found[ROWS];
        if (first_time) ask_for(w + AHEAD, size);
        vf scale = lanes_of_halves(halves);
        if (kind == 4) {
            block4(count, w, x, width, total + b, blocks, found);
            vf least = lanes_of_halves(halves + 32);
            EACH_ROW {
                acc[r] += __builtin_convertvector(found[r], vf) * (scale * scales[r * blocks + b]);
                acc[r] += least * sums[r * blocks + b];
            }
        } else {
            block8(count, w, x, width, total + b, blocks, found);
            EACH_ROW acc[r] += __builtin_convertvector(found[r], vf) * (scale * scales[r * blocks + b]);
        }
        w += size, halves += size, x += BLOCK;
    }
    int64_t first = tile * TILE + piece * LANES, valid = linear->outputs - first;
    EACH_ROW {
        float *to = out + (row + r) * stride + first;
        if (valid >= LANES) {
            if (linear->bias) acc[r] += *(const vf *)(linear->bias + first);
            if (add) acc[r] += *(const vf *)to;
            *(vf *)to = acc[r];
        } else
            for (int n = 0; n < valid; n++) {
                float v = acc[r][n];
                if (linear->bias) v += linear->bias[first + n];
                to[n] = add ? to[n] + v : v;
            }
    }
}

INLINE void rows_of_kind(
    int kind, const Linear *linear, const Rows *rows, int64_t count, int64_t from, int64_t to, float *out,
    int64_t stride, int add
) {
    for (int64_t tile = from; tile < to; tile++)
        for (int64_t piece = 0; piece < TILE / LANES; piece++)
            for (int64_t row = 0; row < count; row += ROWS) {
                int64_t left = count - row;
#define CASE(n) case n: piece_rows(n, kind, linear, rows, tile, piece, row, out, stride, add); break;
                switch (left < ROWS ? left : ROWS) {
                    CASE(1) CASE(2) CASE(3) CASE(4)
#if ROWS == 8
                    CASE(5) CASE(6) CASE(7) CASE(8)
#endif
                }
            }
}

static void tiles_rows(
    const Linear *linear, const Rows *rows, int64_t count, int64_t from, int64_t to, float *out, int64_t stride, int add
) {
    if (linear->kind == 4) rows_of_kind(4, linear, rows, count, from, to, out, stride, add);
    else rows_of_kind(8, linear, rows, count, from, to, out, stride, add);
}

// ---- threads --------------------------------------------------------------------------------------------------------
// Work is done in stages, each of so many items, which threads take one by one. A stage is over when all its items are
// done, whoever did them: a thread that the machine keeps waiting holds nobody up unless it has an item in hand, and at
// the end of a call, where all must come back. (With a barrier after every stage, two threads beside three other busy
// processes wrote a third of the text in the same time.)
typedef struct {
    int64_t next, done;
    char apart[48];  // stages of their own lines of the cache
} Stage;

static inline int64_t take(Stage *stage, int64_t items) {
    int64_t item = __atomic_fetch_add(&stage->next, 1, __ATOMIC_RELAXED);
    return item < items ? item : -1;
}

static inline void finish(Stage *stage) { __atomic_fetch_add(&stage->done, 1, __ATOMIC_RELEASE); }

static inline void await(Stage *stage, int64_t items) {
    for (int64_t tries = 1; __atomic_load_n(&stage->done, __ATOMIC_ACQUIRE) < items; tries++) {
        if (tries % 4096 == 0) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#endif
    }
}

// EACH(item, items) { ... } DONE: the next stage; `stage` goes from one to the next.
#define EACH(item, items)                                                                                             \
    {                                                                                                                  \
        const int64_t all = (items);                                                                                   \
        for (int64_t item; (item = take(stage, all)) >= 0; finish(stage))
#define DONE                                                                                                           \
    await(stage++, all);                                                                                               \
    }

// The share of `total` that is item `item` of `items`.
static inline void share(int64_t total, int64_t item, int64_t items, int64_t *from, int64_t *to) {
    *from = total * item / items;
    *to = total * (item + 1) / items;
}

static inline int64_t tiles_of(const Linear *linear) { return (linear->outputs + TILE - 1) / TILE; }

// Into how many items a product is cut.
static inline int64_t pieces_of(const Linear *linear, int64_t threads) {
    int64_t tiles = tiles_of(linear), wanted = threads > 1 ? 4 * threads : 1;
    return tiles < wanted ? tiles : wanted;
}

static void multiply(
    const Linear *linear, const Rows *rows, int64_t count, float *out, int64_t stride, int add, int64_t item,
    int64_t items
) {
    int64_t from, to;
    share(tiles_of(linear), item, items, &from, &to);
    tiles_rows(linear, rows, count, from, to, out, stride, add);
}

static Rows make_rows(int64_t inputs, int64_t count) {
    int64_t numbers = inputs * count, blocks = numbers / BLOCK;
    char *memory = malloc((size_t)(numbers + blocks * 12 + 64));
    Rows rows = {inputs, NULL, NULL, NULL, NULL};
    if (!memory) return rows;
    rows.scale = (float *)memory;
    rows.sum = rows.scale + blocks;
    rows.total = (int32_t *)(rows.sum + blocks);
    rows.bytes = (int8_t *)(rows.total + blocks);
    return rows;
}

static void free_rows(Rows *rows) { free(rows->scale); }

// x [count, inputs] -> out [count, outputs]. 0, or 1 where there is no memory.
int64_t smtp_linear(const Linear *linear, const float *x, int64_t count, float *out, int64_t threads) {
    Rows rows = make_rows(linear->inputs, count);
    Stage stages[2] = {{0}};
    if (!rows.scale) return 1;
#pragma omp parallel num_threads(threads)
    {
        Stage *stage = stages;
        EACH(r, count) quantise(x + r * linear->inputs, &rows, r, 0, linear->inputs / BLOCK);
        DONE
        EACH(item, pieces_of(linear, threads)) multiply(linear, &rows, count, out, linear->outputs, 0, item, all);
        DONE
    }
    free_rows(&rows);
    return 0;
}

// ---- the decoder ----------------------------------------------------------------------------------------------------
// A layer with the norm `side` is twice as wide where it begins: it reads the normed vectors `side` of the forward, then
// the normed stream.
typedef struct {
    const float *side, *enter, *middle, *q_norm, *k_norm;
    Linear qkv, leave, gate_up, down;
} Layer;

typedef struct {
    int64_t layers, dim, heads, kv_heads, head_dim, hidden, rows, nodes, behind, size, entries, taps, threads, cache_rows;
    float eps, qk_eps, scale;
    const Layer *layer;
    const float *norm;         // [dim]
    const float *cos, *sin;    // [positions, head_dim / 2]
    const int64_t *index;      // [rows, nodes]: positions
    const int64_t *lengths;    // [rows]: valid entries of the cache
    const int64_t *at;         // [rows]: which row of the cache each has; NULL: its own number
    const uint8_t *ancestors;  // [rows, nodes, behind + nodes]: what a node sees of the `behind` entries after the valid
                               // ones and of the nodes, which come after those; NULL: all up to itself
    float *keys, *values;      // [layers, cache_rows, kv_heads, size, head_dim]
    const float *side;         // [rows, nodes, dim], for layers that read it
    float *x;                  // [rows, nodes, dim]: the embeddings, then what comes after the last layer
    float *final;              // [rows, nodes, dim]: after the final norm
    const int64_t *tap;        // [taps]: the layers before which the stream is kept (layers: after the last)
    float *tapped;             // [rows, nodes, taps, dim]
} Forward;

static void rms(const float *x, const float *weight, int64_t dim, float eps, float *out) {
    f8 acc = all8(0.0f);
    for (int64_t i = 0; i < dim; i += 8) acc += load8(x + i) * load8(x + i);
    float factor = 1.0f / sqrtf(sum8(acc) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i += 8) store8(out + i, load8(x + i) * factor * load8(weight + i));
}

static void rotate(float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

// Queries of one key head over the entries `at[0..count)` (NULL: the first `count`) of its keys and values: `number` of
// them, each with a count of its own, none less than the one before. Entries are read in pieces that stay near, for all
// queries in turn; what a query gets does not depend on the others.
#define PIECE 64
#define MOST 16  // queries at once

typedef struct {
    const float *q;
    float *scores, *out;
    int64_t count;
} Query;

// Scores of a piece of the entries, those from `from` on.
INLINE void score_one(
    const Query *one, const float *keys, const int64_t *at, int64_t from, int64_t dim, float scale
) {
    int64_t to = from + PIECE < one->count ? from + PIECE : one->count;
    for (int64_t s = from; s < to; s += 8) {
        f8 parts[8];
        for (int i = 0; i < 8; i++) {
            int64_t entry = s + i < one->count ? s + i : one->count - 1;
            const float *k = keys + (at ? at[entry] : entry) * dim;
            f8 acc = load8(one->q) * load8(k);
            for (int64_t d = 8; d < dim; d += 8) acc = fma8(load8(one->q + d), load8(k + d), acc);
            parts[i] = acc;
        }
        store8(one->scores + s, sums8(parts) * scale);
    }
}

// The entries of a piece, each times its share, added to what comes out of a query.
INLINE void mix_one(const Query *one, const float *values, const int64_t *at, int64_t from, int64_t dim) {
    int64_t to = from + PIECE < one->count ? from + PIECE : one->count;
    f8 acc[WIDEST / 8];
    for (int64_t d = 0; d < dim; d += 8) acc[d / 8] = load8(one->out + d);
    for (int64_t s = from; s < to; s++) {
        const float *v = values + (at ? at[s] : s) * dim;
        f8 weight = all8(one->scores[s]);
        for (int64_t d = 0; d < dim; d += 8) acc[d / 8] = fma8(load8(v + d), weight, acc[d / 8]);
    }
    for (int64_t d = 0; d < dim; d += 8) store8(one->out + d, acc[d / 8]);
}

#if LANES == 16
// Two queries side by side, one in the lower half of a vector and one in the upper: each is summed as it is alone.
#define SIDE_BY_SIDE 2

INLINE __m512 twice(const float *p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }

INLINE __m512 beside(const float *low, const float *high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
}

INLINE void score_two(
    const Query *a, const Query *b, const float *keys, const int64_t *at, int64_t from, int64_t dim, float scale
) {
    int64_t count = a->count > b->count ? a->count : b->count, to = from + PIECE < count ? from + PIECE : count;
    __m512 q[WIDEST / 8];
    for (int64_t d = 0; d < dim; d += 8) q[d / 8] = beside(a->q + d, b->q + d);
    for (int64_t s = from; s < to; s += 8) {
        f8 low[8], high[8];
        UNROLL for (int i = 0; i < 8; i++) {
            int64_t entry = s + i < count ? s + i : count - 1;
            const float *k = keys + (at ? at[entry] : entry) * dim;
            __m512 acc = _mm512_mul_ps(q[0], twice(k));
            for (int64_t d = 8; d < dim; d += 8) acc = _mm512_fmadd_ps(q[d / 8], twice(k + d), acc);
            low[i] = (f8)_mm512_castps512_ps256(acc);
            high[i] = (f8)_mm512_extractf32x8_ps(acc, 1);
        }
        store8(a->scores + s, sums8(low) * scale);
        store8(b->scores + s, sums8(high) * scale);
    }
}

INLINE void score(
    const Query *queries, int64_t number, const float *keys, const int64_t *at, int64_t from, int64_t dim, float scale
) {
    if (number > 1) score_two(queries, queries + 1, keys, at, from, dim, scale);
    else score_one(queries, keys, at, from, dim, scale);
}

INLINE void mix_from(
    int count, const Query *queries, const float *values, const int64_t *at, int64_t from, int64_t to, int64_t dim
) {
    __m512 acc[2][WIDEST / 16];
    EACH_ROW for (int64_t d = 0; d < dim; d += 16) acc[r][d / 16] = _mm512_loadu_ps(queries[r].out + d);
    for (int64_t s = from; s < to; s++) {
        const float *v = values + (at ? at[s] : s) * dim;
        for (int64_t d = 0; d < dim; d += 16) {
            __m512 own = _mm512_loadu_ps(v + d);
            EACH_ROW acc[r][d / 16] = _mm512_fmadd_ps(own, _mm512_set1_ps(queries[r].scores[s]), acc[r][d / 16]);
        }
    }
    EACH_ROW for (int64_t d = 0; d < dim; d += 16) _mm512_storeu_ps(queries[r].out + d, acc[r][d / 16]);
}

INLINE void mix(
    const Query *queries, int64_t number, const float *values, const int64_t *at, int64_t from, int64_t dim
) {
    int64_t to = from + PIECE, both = queries->count < to ? queries->count : to;
    if (number > 1 && dim % 16 == 0 && from < both) {
        int64_t second = queries[1].count < to ? queries[1].count : to;
        mix_from(2, queries, values, at, from, both, dim);
        mix_from(1, queries + 1, values, at, both, second, dim);
    } else
        for (int j = 0; j < 2 && j < number; j++) mix_one(queries + j, values, at, from, dim);
}
#else
#define SIDE_BY_SIDE 1

INLINE void score(
    const Query *queries, int64_t number, const float *keys, const int64_t *at, int64_t from, int64_t dim, float scale
) {
    (void)number;
    score_one(queries, keys, at, from, dim, scale);
}

INLINE void mix(
    const Query *queries, int64_t number, const float *values, const int64_t *at, int64_t from, int64_t dim
) {
    (void)number;
    mix_one(queries, values, at, from, dim);
}
#endif

INLINE void look_width(
    Query *queries, int64_t number, const float *keys, const float *values, const int64_t *at, int64_t dim, float scale
) {
    int64_t longest = 0;
    for (int64_t j = 0; j < number; j++) longest = queries[j].count > longest ? queries[j].count : longest;
    for (int64_t from = 0; from < longest; from += PIECE)
        for (int64_t j = 0; j < number; j += SIDE_BY_SIDE)
            score(queries + j, number - j, keys, at, from, dim, scale);
    float shares[MOST];
    for (int64_t j = 0; j < number; j++) {
        const Query *one = queries + j;
        for (int64_t s = one->count; s < (one->count + 7) / 8 * 8; s++) one->scores[s] = -INFINITY;
        f8 largest = all8(-INFINITY), totals = all8(0.0f);
        for (int64_t s = 0; s < one->count; s += 8) largest = larger8(largest, load8(one->scores + s));
        float most = largest8(largest);
        for (int64_t s = 0; s < one->count; s += 8) {
            f8 e = exp8(load8(one->scores + s) - most);
            store8(one->scores + s, e);
            totals += e;
        }
        shares[j] = 1.0f / sum8(totals);
        for (int64_t d = 0; d < dim; d += 8) store8(one->out + d, all8(0.0f));
    }
    for (int64_t from = 0; from < longest; from += PIECE)
        for (int64_t j = 0; j < number; j += SIDE_BY_SIDE) mix(queries + j, number - j, values, at, from, dim);
    for (int64_t j = 0; j < number; j++)
        for (int64_t d = 0; d < dim; d += 8) store8(queries[j].out + d, load8(queries[j].out + d) * shares[j]);
}

// The usual widths of a head have loops of their own, which stay in registers.
static void look(
    Query *queries, int64_t number, const float *keys, const float *values, const int64_t *at, int64_t dim, float scale
) {
    if (dim == 64) look_width(queries, number, keys, values, at, 64, scale);
    else if (dim == 128) look_width(queries, number, keys, values, at, 128, scale);
    else look_width(queries, number, keys, values, at, dim, scale);
}

static void swiglu(const float *gate, const float *up, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) store8(out + i, silu8(load8(gate + i)) * load8(up + i));
}

static inline int64_t cache_offset(const Forward *f, int64_t layer, int64_t row, int64_t head) {
    int64_t at = f->at ? f->at[row] : row;
    return ((layer * f->cache_rows + at) * f->kv_heads + head) * f->size * f->head_dim;
}

static void keep_tap(const Forward *f, int64_t layer, int64_t n) {
    for (int64_t t = 0; t < f->taps; t++)
        if (f->tap[t] == layer) memcpy(f->tapped + (n * f->taps + t) * f->dim, f->x + n * f->dim, (size_t)f->dim * 4);
}

// How attention is cut into items: a key head with the queries of some neighbouring nodes; few nodes by single heads, so
// that all threads have some.
typedef struct {
    int64_t heads, nodes, parts, runs, items;
} Cut;

static Cut cut_of(const Forward *f) {
    int64_t groups = f->heads / f->kv_heads, few = f->rows * f->nodes * f->kv_heads < 8 * f->threads || groups > MOST;
    Cut cut;
    cut.heads = few ? 1 : groups;
    cut.nodes = f->nodes > 8 && !f->ancestors ? MOST / cut.heads : 1;
    cut.parts = f->heads / cut.heads;
    cut.runs = (f->nodes + cut.nodes - 1) / cut.nodes;
    cut.items = f->rows * cut.runs * cut.parts;
    return cut;
}

// What nodes see, of the nodes' queries `qkv`.
static void attend(
    const Forward *f, const Cut *cut, int64_t layer, const float *qkv, float *seen, float *scores, int64_t *list,
    int64_t item
) {
    int64_t width = (f->heads + 2 * f->kv_heads) * f->head_dim, groups = f->heads / f->kv_heads;
    int64_t part = item % cut->parts, run = item / cut->parts % cut->runs, row = item / cut->parts / cut->runs;
    int64_t first = run * cut->nodes, last = first + cut->nodes < f->nodes ? first + cut->nodes : f->nodes;
    int64_t length = f->lengths[row], number = 0;
    const int64_t *at = NULL;
    Query queries[MOST];
    for (int64_t node = first; node < last; node++) {
        int64_t n = row * f->nodes + node, count = length, more = f->behind + f->nodes;
        if (!f->ancestors) count += f->behind + node + 1;
        else {
            const uint8_t *sees = f->ancestors + n * more;
            for (int64_t m = 0; m < more; m++)
                if (sees[m]) list[count++] = length + m;
            if (count != length + f->behind + node + 1) {  // no chain up to here
                for (int64_t s = 0; s < length; s++) list[s] = s;
                at = list;
            }
        }
        for (int64_t h = part * cut->heads; h < (part + 1) * cut->heads; h++, number++)
            queries[number] = (Query){
                qkv + n * width + h * f->head_dim, scores + number * f->entries,
                seen + (n * f->heads + h) * f->head_dim, count
            };
    }
    int64_t offset = cache_offset(f, layer, row, part * cut->heads / groups);
    look(queries, number, f->keys + offset, f->values + offset, at, f->head_dim, f->scale);
}

// Queries and keys of node n in place: norms, rotation; keys and values into the cache.
static void place(const Forward *f, const Layer *layer, int64_t number, float *qkv, int64_t n) {
    int64_t dim = f->head_dim, width = (f->heads + 2 * f->kv_heads) * dim, half = dim / 2;
    int64_t row = n / f->nodes, slot = f->lengths[row] + f->behind + n % f->nodes;
    const float *cos = f->cos + f->index[n] * half, *sin = f->sin + f->index[n] * half;
    float *own = qkv + n * width;
    for (int64_t h = 0; h < f->heads + f->kv_heads; h++) {
        float *x = own + h * dim;
        const float *norm = h < f->heads ? layer->q_norm : layer->k_norm;
        if (norm) rms(x, norm, dim, f->qk_eps, x);
        rotate(x, cos, sin, half);
    }
    for (int64_t h = 0; h < f->kv_heads; h++) {
        int64_t at = cache_offset(f, number, row, h) + slot * dim;
        memcpy(f->keys + at, own + (f->heads + h) * dim, (size_t)dim * 4);
        memcpy(f->values + at, own + (f->heads + f->kv_heads + h) * dim, (size_t)dim * 4);
    }
}

// What lies between the products; `own` belongs to the threads, `each` bytes to one. The inputs of a product as whole
// numbers are made once for all, or, where they are few, by every thread for itself, which saves threads from waiting
// for one another.
typedef struct {
    Rows shared, *alone;
    float *wide, *qkv, *seen;
    char *own;
    int64_t each;
    Stage *stages;
} Work;

#define STAGES 10  // of a layer, at most
#define FEW 2

typedef enum { ENTER, SEEN, MIDDLE, GATED } Source;

// The inputs that node n has of a product.
static void prepare(
    const Forward *f, const Work *work, const Layer *layer, Source source, Rows *rows, int64_t n, float *scratch
) {
    const float *x = scratch;
    if (source == SEEN) x = work->seen + n * f->heads * f->head_dim;
    else if (source == GATED) {
        const float *gate = work->wide + n * 2 * f->hidden;
        swiglu(gate, gate + f->hidden, scratch, f->hidden);
    } else {
        int64_t wide = source == ENTER && layer->side ? f->dim : 0;
        if (wide) rms(f->side + n * f->dim, layer->side, f->dim, f->eps, scratch);
        rms(f->x + n * f->dim, source == ENTER ? layer->enter : layer->middle, f->dim, f->eps, scratch + wide);
    }
    quantise(x, rows, n, 0, rows->inputs / BLOCK);
}

static Stage *product(
    const Forward *f, const Work *work, const Layer *layer, Source source, const Linear *linear, float *out,
    int64_t stride, int add, float *scratch, Stage *stage
) {
    int64_t count = f->rows * f->nodes, few = count <= FEW, made = 0;
    Rows rows = few ? work->alone[omp_get_thread_num()] : work->shared;
    rows.inputs = linear->inputs;
    if (!few) {
        EACH(n, count) prepare(f, work, layer, source, &rows, n, scratch);
        DONE
    }
    EACH(item, pieces_of(linear, f->threads)) {
        for (; few && made < count; made++) prepare(f, work, layer, source, &rows, made, scratch);
        multiply(linear, &rows, count, out, stride, add, item, all);
    }
    DONE
    return stage;
}

static void run(const Forward *f, const Work *work) {
    int64_t count = f->rows * f->nodes, width = (f->heads + 2 * f->kv_heads) * f->head_dim;
    int64_t *list = (int64_t *)(work->own + omp_get_thread_num() * work->each);
    float *scores = (float *)(list + f->entries), *scratch = scores + MOST * f->entries;
    const Cut cut = cut_of(f);
    Stage *stage = work->stages;
    for (int64_t i = 0; i < f->layers; i++) {
        const Layer *layer = f->layer + i;
        stage = product(f, work, layer, ENTER, &layer->qkv, work->qkv, width, 0, scratch, stage);
        EACH(n, count) {
            keep_tap(f, i, n);
            place(f, layer, i, work->qkv, n);
        }
        DONE
        EACH(item, cut.items) attend(f, &cut, i, work->qkv, work->seen, scores, list, item);
        DONE
        stage = product(f, work, layer, SEEN, &layer->leave, f->x, f->dim, 1, scratch, stage);
        stage = product(f, work, layer, MIDDLE, &layer->gate_up, work->wide, 2 * f->hidden, 0, scratch, stage);
        stage = product(f, work, layer, GATED, &layer->down, f->x, f->dim, 1, scratch, stage);
    }
    EACH(n, count) {
        keep_tap(f, f->layers, n);
        rms(f->x + n * f->dim, f->norm, f->dim, f->eps, f->final + n * f->dim);
    }
    DONE
}

// 0, or 1 where there is no memory.
int64_t smtp_forward(const Forward *f) {
    int64_t count = f->rows * f->nodes, inner = f->heads * f->head_dim, width = inner + 2 * f->kv_heads * f->head_dim;
    int64_t begin = f->side ? 2 * f->dim : f->dim, widest = begin > f->hidden ? begin : f->hidden;
    int64_t failed = 0, alone = count <= FEW ? f->threads : 0;
    int64_t longest = widest > inner ? widest : inner;
    Work work = {
        make_rows(longest, alone ? 0 : count), calloc((size_t)alone + 1, sizeof(Rows)),
        malloc((size_t)(count * 2 * f->hidden) * 4), malloc((size_t)(count * width) * 4),
        malloc((size_t)(count * inner) * 4), NULL, f->entries * (8 + 4 * MOST) + widest * 4,
        calloc((size_t)(f->layers * STAGES + 1), sizeof(Stage))
    };
    work.own = malloc((size_t)(f->threads * work.each));
    if (!work.shared.scale || !work.alone || !work.wide || !work.qkv || !work.seen || !work.stages || !work.own)
        failed = 1;
    for (int64_t t = 0; t < alone && !failed; t++) {
        work.alone[t] = make_rows(longest, count);
        failed = !work.alone[t].scale;
    }
    if (!failed) {
#pragma omp parallel num_threads(f->threads)
        run(f, &work);
    }
    for (int64_t t = 0; t < alone && work.alone; t++) free_rows(work.alone + t);
    free_rows(&work.shared);
    free(work.alone), free(work.wide), free(work.qkv), free(work.seen), free(work.own), free(work.stages);
    return failed;
}

// ---- choosing -------------------------------------------------------------------------------------------------------
// What speech_mtp/decoding/sampling.py computes for small vocabularies, a row at a time: see there.
static inline uint64_t scramble(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

typedef struct {
    float logit;
    int64_t id;
} Candidate;

static int falling(const void *a, const void *b) {
    float x = ((const Candidate *)a)->logit, y = ((const Candidate *)b)->logit;
    return x < y ? 1 : x > y ? -1 : 0;
}

// The smallest logit inside top-k (0: no limit) and top-p, of the candidates in falling order; `total` is the sum of
// exp(logit - most) over all tokens.
static float least_inside(
    const Candidate *ranked, int64_t count, int64_t top_k, float top_p, float most, float total
) {
    int64_t inside = top_k > 0 && top_k < count ? top_k : count;
    if (top_k > 0) {
        total = 0;
        for (int64_t i = 0; i < inside; i++) total += expf(ranked[i].logit - most);
    }
    float before = 0;
    int64_t kept = 0;
    while (kept < inside && (top_p >= 1.0f || before <= top_p)) {
        before += expf(ranked[kept].logit - most) / total;
        kept++;
    }
    return ranked[kept ? kept - 1 : 0].logit;
}

typedef struct {
    float temperature, top_p;
    int64_t top_k, seed, position;
} Draw;

// The token of one row of logits; `found` has room for all.
static int64_t choose_one(
    const float *logits, int64_t size, Draw draw, int64_t channel, int64_t purpose, Candidate *found
) {
    const uint64_t golden = 0x9E3779B97F4A7C15u;
    int64_t token = 0;
    for (int64_t i = 1; i < size; i++)  // what is no number counts as the largest, as torch has it
        if (logits[i] > logits[token] || (logits[i] != logits[i] && logits[token] == logits[token])) token = i;
    if (!(draw.temperature > 0)) return token;

    float t = draw.temperature, most = logits[token] / t, total = 0, least = -INFINITY;
    int limited = draw.top_k > 0 || draw.top_p < 1.0f;
    int64_t count = 0;
    if (limited) {
        for (int64_t i = 0; i < size; i++) total += expf(logits[i] / t - most);
        // Tokens below this share are outside top-p together.
        float share = draw.top_k > 0 ? 0.0f : 0.99f * (1.0f - draw.top_p) / (float)size * total;
        for (int64_t i = 0; i < size; i++) {
            float logit = logits[i] / t;
            if (expf(logit - most) >= share && logit > -INFINITY) found[count++] = (Candidate){logit, i};
        }
        if (!count) return token;  // none may be drawn
        qsort(found, (size_t)count, sizeof(Candidate), falling);
        least = least_inside(found, count, draw.top_k, draw.top_p, most, total);
    }
    uint64_t key = scramble((uint64_t)draw.seed * golden + (uint64_t)draw.position);
    key = scramble(key + (uint64_t)(channel * 64 + purpose + 1) * golden);
    float largest = -INFINITY;
    for (int64_t j = 0; j < (limited ? count : size); j++) {
        int64_t id = limited ? found[j].id : j;
        float logit = limited ? found[j].logit : logits[j] / t;
        if (logit < least || logit == -INFINITY) continue;
        uint64_t number = scramble(key + (uint64_t)(id + 1) * golden);
        float u = ((float)((number >> 40) & 0xFFFFFF) + 0.5f) / 16777216.0f;
        u = u < 1.0f - 0x1p-24f ? u : 1.0f - 0x1p-24f;
        float sum = logit - logf(-logf(u));
        if (sum > largest || (sum == largest && id < token)) largest = sum, token = id;
    }
    return token;
}

// logits [rows, size] -> tokens [rows]; all other arrays have a number for each row. 0, or 1 where there is no memory.
int64_t smtp_choose(
    const float *logits, int64_t rows, int64_t size, const float *temperature, const int64_t *top_k, const float *top_p,
    const int64_t *seed, const int64_t *position, int64_t channel, int64_t purpose, int64_t *tokens
) {
    Candidate *found = malloc((size_t)size * sizeof(Candidate));
    if (!found) return 1;
    for (int64_t r = 0; r < rows; r++) {
        Draw draw = {temperature[r], top_p[r], top_k[r], seed[r], position[r]};
        tokens[r] = choose_one(logits + r * size, size, draw, channel, purpose, found);
    }
    free(found);
    return 0;
}

// ---- channel by channel ---------------------------------------------------------------------------------------------
// The output layer of a group of tokens (speech_mtp/lm/output.py, Depth), channel after channel in one call: the state
// through a norm and two products, masks, the draw, and what the drawn token adds to the state for the channels after.
typedef struct {
    Linear up, down, project;  // project: of all channels but the last
    const float *norm;         // [dim]
    const float *table;        // [size, narrow]
    int64_t settings;          // which of the settings draw it
    int64_t guarded;           // whether `stuck` holds for it
} Channel;

typedef struct {
    int64_t channels, rows, dim, width, narrow, threads, purpose;
    float eps;
    const Channel *channel;
    float *x;                  // [rows, dim]; written over
    const uint8_t *allowed;    // [rows, size of channel 0]
    const int64_t *stuck;      // [rows]: the token of guarded channels whose logit is lowered
    const float *lowered;      // [rows]: by how much
    const float *temperature;  // [settings, rows], and so are top_k and top_p
    const int64_t *top_k;
    const float *top_p;
    const int64_t *seed, *position;  // [rows]
    int64_t *tokens;                 // [rows, channels]
} Depth;

static void draw_row(const Depth *d, int64_t c, float *logits, int64_t n, Candidate *found) {
    const Channel *channel = d->channel + c;
    int64_t size = channel->down.outputs, at = channel->settings * d->rows + n;
    for (int64_t i = 0; !c && i < size; i++)
        if (!d->allowed[n * size + i]) logits[i] = -INFINITY;
    if (channel->guarded) logits[d->stuck[n]] -= d->lowered[n];
    Draw draw = {d->temperature[at], d->top_p[at], d->top_k[at], d->seed[n], d->position[n]};
    d->tokens[n * d->channels + c] = choose_one(logits, size, draw, c, d->purpose, found);
}

// 0, or 1 where there is no memory.
int64_t smtp_depth(const Depth *d) {
    int64_t largest = 0, each = d->dim > d->width ? d->dim : d->width, failed = 1;
    each = each > d->narrow ? each : d->narrow;
    for (int64_t c = 0; c < d->channels; c++)
        largest = d->channel[c].down.outputs > largest ? d->channel[c].down.outputs : largest;
    Rows rows = make_rows(each, d->rows);
    float *wide = malloc((size_t)(d->rows * d->width) * 4), *logits = malloc((size_t)(d->rows * largest) * 4);
    char *own = malloc((size_t)(d->threads * (largest * (int64_t)sizeof(Candidate) + each * 4)));
    Stage *stages = calloc((size_t)(6 * d->channels), sizeof(Stage));
    if (rows.scale && wide && logits && own && stages) {
        failed = 0;
#pragma omp parallel num_threads(d->threads)
        {
            Candidate *found =
                (Candidate *)(own + omp_get_thread_num() * (largest * (int64_t)sizeof(Candidate) + each * 4));
            float *scratch = (float *)(found + largest);
            Stage *stage = stages;
            Rows in = rows;
            for (int64_t c = 0; c < d->channels; c++) {
                const Channel *channel = d->channel + c;
                int64_t size = channel->down.outputs;
                in.inputs = d->dim;
                EACH(n, d->rows) {
                    rms(d->x + n * d->dim, channel->norm, d->dim, d->eps, scratch);
                    quantise(scratch, &in, n, 0, d->dim / BLOCK);
                }
                DONE
                EACH(item, pieces_of(&channel->up, d->threads))
                    multiply(&channel->up, &in, d->rows, wide, d->width, 0, item, all);
                DONE
                in.inputs = d->width;
                EACH(n, d->rows) {
                    for (int64_t i = 0; i < d->width; i += 8) store8(scratch + i, silu8(load8(wide + n * d->width + i)));
                    quantise(scratch, &in, n, 0, d->width / BLOCK);
                }
                DONE
                EACH(item, pieces_of(&channel->down, d->threads))
                    multiply(&channel->down, &in, d->rows, logits, size, 0, item, all);
                DONE
                in.inputs = d->narrow;
                EACH(n, d->rows) {
                    draw_row(d, c, logits + n * size, n, found);
                    if (c + 1 < d->channels)
                        quantise(
                            channel->table + d->tokens[n * d->channels + c] * d->narrow, &in, n, 0, d->narrow / BLOCK
                        );
                }
                DONE
                if (c + 1 < d->channels) {
                    EACH(item, pieces_of(&channel->project, d->threads))
                        multiply(&channel->project, &in, d->rows, d->x, d->dim, 1, item, all);
                    DONE
                }
            }
        }
    }
    free_rows(&rows);
    free(wide), free(logits), free(own), free(stages);
    return failed;
}
