/* Operations of graph networks on a CPU. graph_kernels.py compiles this file, once for each type of number.

   A matrix [rows, columns] is in CSR format: row i has the entries starts[i] to starts[i + 1] - 1. Each function
   computes the rows first to last - 1, so that threads share the rows, unless it says otherwise. */
#include <math.h>
#include <stdint.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#define exp expf
#endif
typedef int64_t integer;

/* Vectors that the compiler keeps in registers; a processor with shorter registers uses several for each. */
enum { LANES = 64 / sizeof(real), VECTORS = 4, BLOCK = LANES * VECTORS };
typedef real vector __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));
#ifdef DOUBLE
typedef int64_t lanes __attribute__((vector_size(64)));
#else
typedef int32_t lanes __attribute__((vector_size(64)));
#endif
#define EACH_VECTOR _Pragma("GCC unroll 4") for (integer v = 0; v < VECTORS; v++)

/* `value` where x is positive, or nan; else 0. */
static inline vector where_positive(vector x, vector value)
{
    return (vector)((lanes)value & ~(x <= 0));
}

static inline real dot(const real *restrict a, const real *restrict b, integer count)
{
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (integer k = 0; k < count; k++)
        sum += a[k] * b[k];
    return sum;
}

static inline void add_scaled(real *restrict sum, real factor, const real *restrict x, integer count)
{
    for (integer k = 0; k < count; k++)
        sum[k] += factor * x[k];
}

static inline void clear(real *x, integer count)
{
    for (integer k = 0; k < count; k++)
        x[k] = 0;
}

/* out[i] = sum over the entries e of row i of value(e) * x[columns[e]]. Entry e has values[order[e]], or values[e]
   where order is NULL. x: [columns, channels]; out: [rows, channels]. */
void multiply(integer first, integer last, const integer *starts, const integer *columns, const real *values,
              const integer *order, const real *x, integer channels, real *out)
{
    for (integer i = first; i < last; i++) {
        real *row = out + i * channels;
        clear(row, channels);
        for (integer e = starts[i]; e < starts[i + 1]; e++)
            add_scaled(row, values[order ? order[e] : e], x + columns[e] * channels, channels);
    }
}

/* weights: softmax of the scores within each row; out[i] = sum of weights[e] * values[columns[e]], 0 in empty rows. */
void attend(integer first, integer last, const integer *starts, const integer *columns, const real *scores,
            const real *values, integer channels, real *weights, real *out)
{
    for (integer i = first; i < last; i++) {
        real *row = out + i * channels, largest = -INFINITY, sum = 0;
        clear(row, channels);
        for (integer e = starts[i]; e < starts[i + 1]; e++)
            largest = scores[e] > largest || scores[e] != scores[e] ? scores[e] : largest;
        for (integer e = starts[i]; e < starts[i + 1]; e++)
            sum += weights[e] = exp(scores[e] - largest);
        for (integer e = starts[i]; e < starts[i + 1]; e++) {
            weights[e] /= sum;
            add_scaled(row, weights[e], values + columns[e] * channels, channels);
        }
    }
}

/* The gradient of attend's scores: weights[e] * (gradient[i] . values[columns[e]] - gradient[i] . out[i]). */
void attend_backward(integer first, integer last, const integer *starts, const integer *columns, const real *weights,
                     const real *values, const real *out, const real *gradient, integer channels, real *grad_scores)
{
    for (integer i = first; i < last; i++) {
        const real *g = gradient + i * channels;
        real mean = dot(g, out + i * channels, channels);
        for (integer e = starts[i]; e < starts[i + 1]; e++)
            grad_scores[e] = weights[e] * (dot(g, values + columns[e] * channels, channels) - mean);
    }
}

/* GATv2: scores[e] = attention . leaky_relu(left[columns[e]] + right[i]). */
void additive_scores(integer first, integer last, const integer *starts, const integer *columns, const real *left,
                     const real *right, const real *attention, real slope, integer channels, real *scores)
{
    for (integer i = first; i < last; i++) {
        const real *target = right + i * channels;
        for (integer e = starts[i]; e < starts[i + 1]; e++) {
            const real *source = left + columns[e] * channels;
            real score = 0;
#pragma omp simd reduction(+ : score)
            for (integer k = 0; k < channels; k++) {
                real t = source[k] + target[k];
                score += attention[k] * (t <= 0 ? slope * t : t);
            }
            scores[e] = score;
        }
    }
}

/* The gradients of `right`, and of `attention` as far as it comes from these rows. */
void additive_scores_backward_rows(integer first, integer last, const integer *starts, const integer *columns,
                                   const real *left, const real *right, const real *attention, real slope,
                                   integer channels, const real *gradient, real *grad_right, real *grad_attention)
{
    clear(grad_attention, channels);
    for (integer i = first; i < last; i++) {
        const real *restrict target = right + i * channels;
        real *restrict grad_target = grad_right + i * channels;
        clear(grad_target, channels);
        for (integer e = starts[i]; e < starts[i + 1]; e++) {
            const real *restrict source = left + columns[e] * channels;
            real g = gradient[e];
#pragma omp simd
            for (integer k = 0; k < channels; k++) {
                real t = source[k] + target[k], derivative = t > 0 ? 1 : slope;
                grad_target[k] += g * attention[k] * derivative;
                grad_attention[k] += g * derivative * t;
            }
        }
    }
}

/* The gradient of `left`. Its rows are those of the transposed matrix; entry e of it is entry order[e]. */
void additive_scores_backward_columns(integer first, integer last, const integer *starts, const integer *rows,
                                      const integer *order, const real *left, const real *right,
                                      const real *attention, real slope, integer channels, const real *gradient,
                                      real *grad_left)
{
    for (integer j = first; j < last; j++) {
        const real *restrict source = left + j * channels;
        real *restrict grad_source = grad_left + j * channels;
        clear(grad_source, channels);
        for (integer e = starts[j]; e < starts[j + 1]; e++) {
            const real *restrict target = right + rows[e] * channels;
            real g = gradient[order[e]];
#pragma omp simd
            for (integer k = 0; k < channels; k++)
                grad_source[k] += g * attention[k] * (source[k] + target[k] > 0 ? 1 : slope);
        }
    }
}

/* out[i] = sum over the entries e of row i of values[e] * relu(x[senders[m]] + edges[kinds[m]]), m = columns[e] the
   message. Comparisons keep nan. */
void sum_messages(integer first, integer last, const integer *starts, const integer *columns, const real *values,
                  const integer *senders, const integer *kinds, const real *x, const real *edges, integer channels,
                  real *out)
{
    for (integer i = first; i < last; i++) {
        integer k = 0;
        for (; k + BLOCK <= channels; k += BLOCK) {
            vector sums[VECTORS] = {0};
            for (integer e = starts[i]; e < starts[i + 1]; e++) {
                const vector *source = (const vector *)(x + senders[columns[e]] * channels + k);
                const vector *edge = (const vector *)(edges + kinds[columns[e]] * channels + k);
                EACH_VECTOR
                {
                    vector sum = source[v] + edge[v];
                    sums[v] += values[e] * where_positive(sum, sum);
                }
            }
            EACH_VECTOR ((vector *)(out + i * channels + k))[v] = sums[v];
        }
        for (; k < channels; k++) {
            real total = 0;
            for (integer e = starts[i]; e < starts[i + 1]; e++) {
                real sum = x[senders[columns[e]] * channels + k] + edges[kinds[columns[e]] * channels + k];
                total += values[e] * (sum <= 0 ? 0 : sum);
            }
            out[i * channels + k] = total;
        }
    }
}

/* The gradients of x and edges, or of one where the other is NULL, in the channels first to last - 1: each thread
   sums all messages in the same order. Node j sends the messages columns[e] of its row; message m goes to the nodes
   receivers[r] with the factors factors[r], r from message_starts[m] to message_starts[m + 1] - 1. */
void sum_messages_backward(integer first, integer last, integer nodes, const integer *starts, const integer *columns,
                           const integer *message_starts, const integer *receivers, const real *factors,
                           const integer *kinds, const real *x, const real *edges, const real *gradient,
                           integer channels, real *grad_x, real *grad_edges)
{
    for (integer j = 0; j < nodes; j++) {
        integer k = first;
        for (; k + BLOCK <= last; k += BLOCK) {
            const vector *source = (const vector *)(x + j * channels + k);
            vector sums[VECTORS] = {0};
            for (integer e = starts[j]; e < starts[j + 1]; e++) {
                integer m = columns[e];
                const vector *edge = (const vector *)(edges + kinds[m] * channels + k);
                vector grad[VECTORS] = {0};
                for (integer r = message_starts[m]; r < message_starts[m + 1]; r++)
                    EACH_VECTOR grad[v] += factors[r] * ((const vector *)(gradient + receivers[r] * channels + k))[v];
                EACH_VECTOR sums[v] += grad[v] = where_positive(source[v] + edge[v], grad[v]);
                if (grad_edges)
                    EACH_VECTOR ((vector *)(grad_edges + kinds[m] * channels + k))[v] += grad[v];
            }
            if (grad_x)
                EACH_VECTOR ((vector *)(grad_x + j * channels + k))[v] = sums[v];
        }
        for (; k < last; k++) {
            real total = 0;
            for (integer e = starts[j]; e < starts[j + 1]; e++) {
                integer m = columns[e], edge = kinds[m] * channels + k;
                real grad = 0;
                for (integer r = message_starts[m]; r < message_starts[m + 1]; r++)
                    grad += factors[r] * gradient[receivers[r] * channels + k];
                total += grad = x[j * channels + k] + edges[edge] <= 0 ? 0 : grad;
                if (grad_edges)
                    grad_edges[edge] += grad;
            }
            if (grad_x)
                grad_x[j * channels + k] = total;
        }
    }
}

/* Dropout of relu(x): keeps x[i] * scale where draws[i] >= threshold and x[i] is positive, or nan; out may be x. */
void relu_dropout(integer first, integer last, const real *x, const int16_t *draws, integer threshold, real scale,
                  real *out)
{
    const int32_t smallest = (int32_t)threshold; /* 32768, beyond int16_t, drops everything */
#pragma omp simd
    for (integer i = first; i < last; i++)
        out[i] = draws[i] < smallest || x[i] <= 0 ? 0 : x[i] * scale;
}

/* The gradient of x where `out` is positive, or nan. */
void relu_dropout_backward(integer first, integer last, const real *restrict gradient, const real *restrict out,
                           real scale, real *restrict grad)
{
    for (integer i = first; i < last; i++)
        grad[i] = out[i] <= 0 ? 0 : gradient[i] * scale;
}
