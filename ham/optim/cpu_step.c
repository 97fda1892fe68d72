/* HYP* on a CPU (section 3.1, App. G.2). cpu_step.py compiles this file, once for each type of weight. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* The rounded quotient x / ln 2 appears in the lowest bits of x / ln 2 + ROUNDING. The product of LN2_HIGH and
   that integer is exact. */
#ifdef DOUBLE
typedef double real;
typedef int64_t integer;
typedef uint64_t bits;
#define BIAS 1023
#define MANTISSA 52
#define ROUNDING 0x1.8p52
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#else
typedef float real;
typedef int32_t integer;
typedef uint32_t bits;
#define BIAS 127
#define MANTISSA 23
#define ROUNDING 0x1.8p23f
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -2.12194440054690583e-4f
#endif
#define LOG2_E ((real)1.4426950408889634)
#define NEAR_ZERO ((real)0.3465) /* below ln 2 / 2: exp is the polynomial alone */
#define CHUNK 1024 /* elements, whose exponents stay in the cache */

/* Taylor's polynomial of exp(r), for r in [-0.35, 0.35]. */
static inline real polynomial(real r)
{
    real sum;
#ifdef DOUBLE
    sum = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
    sum = sum * r + 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
#else
    sum = (real)(1.0 / 5040.0);
#endif
    sum = sum * r + (real)(1.0 / 720.0);
    sum = sum * r + (real)(1.0 / 120.0);
    sum = sum * r + (real)(1.0 / 24.0);
    sum = sum * r + (real)(1.0 / 6.0);
    sum = sum * r + (real)0.5;
    return (sum * r * r + r) + (real)1.0;
}

/* exp(x) = 2^n exp(r) for |x| <= 80, with r = x - n ln 2. */
static inline real exponential(real x)
{
    real shifted = x * LOG2_E + ROUNDING, n = shifted - ROUNDING;
    real r = (x - n * LN2_HIGH) - n * LN2_LOW;

    bits exponent;
    real power;
    memcpy(&exponent, &shifted, sizeof exponent);
    exponent = (exponent + BIAS) << MANTISSA;
    memcpy(&power, &exponent, sizeof power);
    return polynomial(r) * power;
}

/* The exponents of `count` weights; returns how many are at NEAR_ZERO or the bound, or beyond. Comparisons keep nan. */
static inline integer compute_exponents(const real *restrict weights, const real *restrict grads, int64_t count, real a,
                                        real b, real clamp, int mask_zero_grad, real *restrict exponents)
{
    real near = clamp < NEAR_ZERO ? clamp : NEAR_ZERO;
    integer far = 0;
    for (int64_t i = 0; i < count; i++) {
        real weight = weights[i], grad = grads[i];
        real sign = weight > 0 ? (real)1.0 : weight < 0 ? (real)-1.0 : (real)0.0; /* 0 for nan, as torch.sign */
        real x = sign * grad * a + b;
        x = -clamp > x ? -clamp : x;
        x = clamp < x ? clamp : x;
        x = mask_zero_grad && grad == 0 ? (real)0.0 : x;
        exponents[i] = x;
        far += x >= near || x <= -near;
    }
    return far;
}

/* One step on `count` weights; returns how many exponents are clamped. */
static int64_t step(real *restrict weights, const real *restrict grads, int64_t count, real a, real b, real clamp,
                    int mask_zero_grad)
{
    int64_t at_bound = 0;
    real exponents[CHUNK];
    for (; count > 0; weights += CHUNK, grads += CHUNK, count -= CHUNK) {
        int64_t size = count < CHUNK ? count : CHUNK;
        if (!compute_exponents(weights, grads, size, a, b, clamp, mask_zero_grad, exponents)) { /* nearly always */
            for (int64_t i = 0; i < size; i++)
                weights[i] *= polynomial(exponents[i]);
            continue;
        }
        integer hits = 0;
        for (int64_t i = 0; i < size; i++) {
            real x = exponents[i];
            hits += x >= clamp || x <= -clamp;
            weights[i] *= exponential(x);
        }
        at_bound += hits;
    }
    return at_bound;
}

/* One step on the elements first, ..., last - 1 of `tensors` tensors that are counted through. */
int64_t hyperbolic_step(int64_t tensors, real *const *weights, const real *const *grads, const int64_t *counts,
                        int64_t first, int64_t last, double a, double b, double clamp, int mask_zero_grad)
{
    int64_t at_bound = 0, offset = 0;
    for (int64_t t = 0; t < tensors && offset < last; offset += counts[t++]) {
        int64_t begin = first > offset ? first - offset : 0;
        int64_t end = last - offset < counts[t] ? last - offset : counts[t];
        if (begin < end)
            at_bound += step(weights[t] + begin, grads[t] + begin, end - begin, (real)a, (real)b, (real)clamp,
                             mask_zero_grad);
    }
    return at_bound;
}
