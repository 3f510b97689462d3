// Convolutions with stride 1 over arrays (channels, height, width, images): the images of a batch lie side by side.
//
// So neighbours in memory are the same pixel of other images, and an instruction works on a full register however few
// channels a layer has. A row, width · images floats, is one vector: what a kernel's next column meets lies `images`
// floats further on. Sums stay in registers while a tile's window is gone through.
//
// Written for GCC's and Clang's vectors, which become whatever the processor has; no OpenMP, one thread.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, OUTPUTS = 8, VECTORS = 3; // of a tile: 24 of 32 registers hold sums
#else
constexpr int LANES = 8, OUTPUTS = 4, VECTORS = 3; // 12 of 16
#endif
constexpr int GRADIENTS = 4; // output channels whose weights' gradients are summed up at once

typedef float Vector __attribute__((vector_size(4 * LANES)));

template <class V> V load(const float *from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V> void store(float *to, V value) { std::memcpy(to, &value, sizeof value); }

// Zeros from a cache line's start on, as a load that crosses two of them takes twice as long.
class Zeros {
    std::vector<float> all;

  public:
    float *start;
    explicit Zeros(size_t size) : all(size + 16) {
        start = reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(all.data()) + 63) / 64 * 64);
    }
};

struct Range {
    int first, end;
};

struct Layer {
    int channels, height, width, images, outputs, kernel, padding;

    int out_height() const { return height + 2 * padding - kernel + 1; }
    long out_row() const { return long(width + 2 * padding - kernel + 1) * images; }
    long row() const { return long(width + 2 * padding) * images; }
    int window() const { return channels * kernel * kernel; }
    // The kernel's rows that meet the image at a row of the output, and its columns at some of a row's floats.
    Range rows(int y) const { return {std::max(0, padding - y), std::min(kernel, height + padding - y)}; }
    Range columns(long first, long last) const {
        return {std::max(0, padding - int(last / images)), std::min(kernel, width + padding - int(first / images))};
    }
};

// The input with zeros left and right of each row, and some floats to spare at the end.
Zeros padded(const Layer &layer, const float *in, long spare) {
    const long rows = long(layer.channels) * layer.height, width = long(layer.width) * layer.images;
    Zeros copy(rows * layer.row() + spare);
    for (long r = 0; r < rows; r++)
        std::memcpy(copy.start + r * layer.row() + layer.padding * layer.images, in + r * width, width * 4);
    return copy;
}

// Some vectors of a row of the output, of OUTPUTS channels of which `count` are there. `in` and `weights` are where the
// kernel's first row and column meet the tile's first float.
template <class V, int P>
void tile(const Layer &layer, const float *in, const float *weights, const float *bias, Range rows, Range columns,
          bool relu, int count, float *out, long out_channel) {
    constexpr int lanes = sizeof(V) / 4;
    V sums[OUTPUTS][P];
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; o++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) sums[o][p] = V{} + bias[o];
    for (int c = 0; c < layer.channels; c++)
        for (int y = rows.first; y < rows.end; y++) {
            const float *x = in + (long(c) * layer.height + y) * layer.row() + long(columns.first) * layer.images;
            const float *w = weights + ((c * layer.kernel + y) * layer.kernel + columns.first) * OUTPUTS;
            for (int k = columns.first; k < columns.end; k++, x += layer.images, w += OUTPUTS) {
                V values[P];
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) values[p] = load<V>(x + p * lanes);
#pragma GCC unroll 8
                for (int o = 0; o < OUTPUTS; o++)
#pragma GCC unroll 8
                    for (int p = 0; p < P; p++) sums[o][p] += values[p] * w[o];
            }
        }
    for (int o = 0; o < count; o++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) {
            V value = sums[o][p];
            if (relu) value = value < 0 ? V{} : value; // NaN stays NaN
            store<V>(out + o * out_channel + p * lanes, value);
        }
}

// (outputs, channels, kernel, kernel) → (outputs / OUTPUTS, channels, kernel, kernel, OUTPUTS)
Zeros packed(const Layer &layer, const float *weights) {
    Zeros found(size_t(layer.outputs + OUTPUTS - 1) / OUTPUTS * OUTPUTS * layer.window());
    for (int o = 0; o < layer.outputs; o++)
        for (int k = 0; k < layer.window(); k++)
            found.start[(size_t(o / OUTPUTS) * layer.window() + k) * OUTPUTS + o % OUTPUTS] =
                weights[size_t(o) * layer.window() + k];
    return found;
}

// Adds to `sums` (GRADIENTS, …, T, LANES) what a row of the outputs' gradients gives to T neighbouring weights.
template <int T>
void weights_of_row(const float *gradients, long length, const float *in, int images, float *sums, long output) {
    Vector totals[GRADIENTS][T]{};
    for (long i = 0; i < length; i += LANES) {
        Vector gradient[GRADIENTS];
#pragma GCC unroll 8
        for (int o = 0; o < GRADIENTS; o++) gradient[o] = load<Vector>(gradients + o * length + i);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            Vector value = load<Vector>(in + i + long(t) * images);
#pragma GCC unroll 8
            for (int o = 0; o < GRADIENTS; o++) totals[o][t] += gradient[o] * value;
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < GRADIENTS; o++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            float *to = sums + o * output + t * LANES;
            store<Vector>(to, load<Vector>(to) + totals[o][t]);
        }
}

} // namespace

// out (outputs, out height, out width, images) of in (channels, height, width, images), weights (outputs, channels,
// kernel, kernel) and bias (outputs), or none; with `relu`, what is negative becomes zero.
extern "C" void convolve(const float *in, const float *weights, const float *bias, float *out, int channels, int height,
                         int width, int images, int outputs, int kernel, int padding, int relu) {
    const Layer layer{channels, height, width, images, outputs, kernel, padding};
    const Zeros copy = padding ? padded(layer, in, 0) : Zeros(0), blocks = packed(layer, weights);
    Zeros biases(outputs + OUTPUTS);
    if (bias) std::copy(bias, bias + outputs, biases.start);
    if (padding) in = copy.start;
    const long length = layer.out_row(), out_channel = layer.out_height() * length;
    for (int y = 0; y < layer.out_height(); y++) {
        const float *row = in + (y - padding) * layer.row();
        for (long i = 0, next; i < length; i = next) {
            int vectors = int(std::min<long>(VECTORS, (length - i + LANES - 1) / LANES));
            if (i + vectors * LANES > length) { // the row's end: some of it once more, or by and by
                if (vectors * LANES <= length) i = length - vectors * LANES;
                else vectors--;
            }
            next = i + (vectors ? vectors * LANES : 1);
            const Range rows = layer.rows(y), columns = layer.columns(i, next - 1);
            for (int o = 0; o < outputs; o += OUTPUTS) {
                const auto compute = vectors == 3   ? tile<Vector, 3>
                                     : vectors == 2 ? tile<Vector, 2>
                                     : vectors == 1 ? tile<Vector, 1>
                                                    : tile<float, 1>;
                compute(layer, row + i, blocks.start + long(o) * layer.window(), biases.start + o, rows, columns, relu,
                        std::min(OUTPUTS, outputs - o), out + o * out_channel + y * length + i, out_channel);
            }
        }
    }
}

// The loss's gradient with respect to the weights, from that with respect to the outputs.
extern "C" void weight_gradient(const float *in, const float *out_gradient, float *gradient, int channels, int height,
                                int width, int images, int outputs, int kernel, int padding) {
    const Layer layer{channels, height, width, images, outputs, kernel, padding};
    const long length = layer.out_row(), whole = (length + LANES - 1) / LANES * LANES;
    // The last vector of a row reaches into what follows, times zero. After the last row may be nothing to read.
    const bool copied = padding || layer.row() < LANES;
    const long last = copied ? -1 : long(channels) * height - 1;
    Zeros copy = copied ? padded(layer, in, LANES) : Zeros(layer.row() + LANES);
    if (copied) in = copy.start;
    else std::copy_n(in + last * layer.row(), layer.row(), copy.start);
    Zeros row(size_t(outputs + GRADIENTS) * whole);
    const long output = long(layer.window()) * LANES;
    Zeros sums(size_t(outputs + GRADIENTS) * output);
    for (int y = 0; y < layer.out_height(); y++) {
        for (int o = 0; o < outputs; o++)
            std::copy_n(out_gradient + (long(o) * layer.out_height() + y) * length, length, row.start + o * whole);
        const Range rows = layer.rows(y);
        for (int o = 0; o < outputs; o += GRADIENTS)
            for (int c = 0; c < channels; c++)
                for (int k = rows.first; k < rows.end; k++) {
                    const long r = long(c) * height + y - padding + k;
                    const float *from = r == last ? copy.start : in + r * layer.row();
                    float *to = sums.start + o * output + long(c * kernel + k) * kernel * LANES;
                    for (int column = 0, taps; column < kernel; column += taps) {
                        taps = std::min(kernel - column, kernel - column == 5 ? 5 : 4);
                        const auto add = taps == 5   ? weights_of_row<5>
                                         : taps == 4 ? weights_of_row<4>
                                         : taps == 3 ? weights_of_row<3>
                                         : taps == 2 ? weights_of_row<2>
                                                     : weights_of_row<1>;
                        add(row.start + o * whole, whole, from + long(column) * images, images, to + column * LANES,
                            output);
                    }
                }
    }
    for (long k = 0; k < long(outputs) * layer.window(); k++) {
        gradient[k] = 0;
        for (int l = 0; l < LANES; l++) gradient[k] += sums.start[k * LANES + l];
    }
}
