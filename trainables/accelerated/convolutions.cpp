// Convolutions with stride 1 over arrays (channels, height, width, images): the images of a batch are innermost.
//
// Neighbours in memory are therefore the same pixel of different images, and an instruction works on a full register
// even if a layer has few channels. A row of width · images floats is treated as one vector: the input for a kernel's
// next column lies `images` floats further on. The output is computed in tiles, whose sums stay in registers while the
// loops run over all weights of the kernel.
//
// The code uses the vector types of GCC and Clang, which compile to whatever vector registers the processor has. It
// runs in one thread, without OpenMP.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace {

#if defined(__AVX512F__)
// A tile computes OUTPUTS output channels at a time.
constexpr int LANES = 16, OUTPUTS = 8; // its sums take 24 of 32 registers
#else
constexpr int LANES = 8, OUTPUTS = 4; // a tile's sums take 12 of 16 registers
#endif
constexpr int VECTORS = 3; // side by side in a tile; also the number of neighbouring weights whose gradients are summed together
constexpr int BLOCK = LANES * VECTORS; // images that pass a network together: one pixel of all of them is one tile

typedef float Vector __attribute__((vector_size(4 * LANES)));

template <class V> V load(const float *from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V> void store(float *to, V value) { std::memcpy(to, &value, sizeof value); }

// Uninitialised floats that begin at a cache line, as a load that crosses cache lines takes twice as long.
struct Floats {
    std::unique_ptr<float[]> all;
    float *start;
    explicit Floats(size_t size) : all(new float[size + 16]) {
        start = reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(all.get()) + 63) / 64 * 64);
    }
};

// Floats that are zero at first.
struct Zeros : Floats {
    explicit Zeros(size_t size) : Floats(size) { std::fill_n(start, size, 0.f); }
};

// Sums over the lanes: (count, LANES) → (count).
void add_up(const float *sums, long count, float *to) {
    for (long k = 0; k < count; k++) {
        to[k] = 0;
        for (int l = 0; l < LANES; l++) to[k] += sums[k * LANES + l];
    }
}

// The integers from `first` up to, but not including, `end`.
struct Range {
    int first, end;
};

// The sizes of a convolution and of its input. convolutions.py has the same fields in `LayerStruct`.
struct Layer {
    int channels, height, width, images, outputs, kernel, padding;

    int out_height() const { return height + 2 * padding - kernel + 1; }
    long out_row() const { return long(width + 2 * padding - kernel + 1) * images; } // floats in a row of the output
    long row() const { return long(width + 2 * padding) * images; }                  // floats in a padded input row
    int window() const { return channels * kernel * kernel; }                        // weights per output channel
    // The kernel's rows that meet pixels, not padding, at row y of the output.
    Range rows(int y) const { return {std::max(0, padding - y), std::min(kernel, height + padding - y)}; }
    // The kernel's columns that meet pixels, not padding, at some float from `first` to `last` of a row of the output.
    Range columns(long first, long last) const {
        return {std::max(0, padding - int(last / images)), std::min(kernel, width + padding - int(first / images))};
    }
};

// Copies numbers. If they are a gradient with respect to `outputs`, those of a ReLU, it is zero where these are.
void copy(const float *from, const float *outputs, long count, float *to) {
    if (!outputs) std::copy_n(from, count, to);
    else
        for (long i = 0; i < count; i++) to[i] = outputs[i] <= 0 ? 0 : from[i];
}

// Returns a copy of the input with zeros left and right of each row, and `spare` more zeros at the end; `outputs` is as
// in `copy`.
Floats padded(const Layer &layer, const float *in, const float *outputs, long spare) {
    const long rows = long(layer.channels) * layer.height, width = long(layer.width) * layer.images;
    const long side = long(layer.padding) * layer.images;
    Floats wider(rows * layer.row() + spare);
    float *to = wider.start;
    for (long r = 0; r < rows; r++) {
        to = std::fill_n(to, side, 0.f);
        copy(in + r * width, outputs ? outputs + r * width : nullptr, width, to);
        to = std::fill_n(to + width, side, 0.f);
    }
    std::fill_n(to, spare, 0.f);
    return wider;
}

// Computes a tile: P vectors of a row of the output, in OUTPUTS channels, of which the first `count` exist and are
// stored. `in` points to the input that the kernel's first row and column meet for the first float of the tile, and
// `weights` to the weight in that row and column.
template <class V, int P>
void tile(const Layer &layer, const float *in, const float *weights, const float *bias, Range rows, Range columns,
          bool relu, int count, float *out, long out_channel) {
    constexpr int lanes = sizeof(V) / 4;
    const int kernel = layer.kernel, next = layer.images;
    const long row = layer.row(), channel = layer.height * row;
    in += rows.first * row + long(columns.first) * next;
    weights += (rows.first * kernel + columns.first) * OUTPUTS;
    V sums[OUTPUTS][P];
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; o++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) sums[o][p] = V{} + bias[o];
    for (int c = 0; c < layer.channels; c++, in += channel, weights += kernel * kernel * OUTPUTS)
        for (int y = 0; y < rows.end - rows.first; y++) {
            const float *x = in + y * row, *w = weights + y * kernel * OUTPUTS;
            for (int k = columns.first; k < columns.end; k++, x += next, w += OUTPUTS) {
                V values[P];
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) values[p] = load<V>(x + p * lanes);
#pragma GCC unroll 8
                for (int o = 0; o < OUTPUTS; o++)
#pragma GCC unroll 8
                    for (int p = 0; p < P; p++) sums[o][p] += values[p] * w[o];
            }
        }
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; o++) {
        if (o == count) return;
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) {
            V value = sums[o][p];
            if (relu) value = V{} > value ? V{} : value; // a NaN stays a NaN
            store<V>(out + o * out_channel + p * lanes, value);
        }
    }
}

// A layer's bias, or zeros if it has none, and its weights in the order in which tiles read them:
// (outputs, channels, kernel, kernel) → (outputs / OUTPUTS, channels, kernel, kernel, OUTPUTS), filled up with zeros.
struct Parameters {
    Zeros weights, bias;
    Parameters(const Layer &layer, const float *from, const float *bias_from)
        : weights(size_t(layer.outputs + OUTPUTS) * layer.window()), bias(layer.outputs + OUTPUTS) {
        for (int o = 0; o < layer.outputs; o++)
            for (int k = 0; k < layer.window(); k++)
                weights.start[(size_t(o / OUTPUTS) * layer.window() + k) * OUTPUTS + o % OUTPUTS] =
                    from[size_t(o) * layer.window() + k];
        if (bias_from) std::copy_n(bias_from, layer.outputs, bias.start);
    }
};

// Adds a row's contribution to the gradients of T neighbouring weights to `sums` (OUTPUTS, …, T, LANES), in which
// channels are `output` floats apart. `gradients` are those with respect to the row of the output, in OUTPUTS channels.
template <int T>
void weights_of_row(const float *gradients, long length, const float *in, int images, float *sums, long output) {
    Vector totals[OUTPUTS][T]{};
    for (long i = 0; i < length; i += LANES) {
        Vector gradient[OUTPUTS];
#pragma GCC unroll 8
        for (int o = 0; o < OUTPUTS; o++) gradient[o] = load<Vector>(gradients + o * length + i);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            Vector value = load<Vector>(in + i + long(t) * images);
#pragma GCC unroll 8
            for (int o = 0; o < OUTPUTS; o++) totals[o][t] += gradient[o] * value;
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; o++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            float *to = sums + o * output + t * LANES;
            store<Vector>(to, load<Vector>(to) + totals[o][t]);
        }
}

// Computes a convolution: in (channels, height, width, images) → out (outputs, out height, out width, images). With
// `relu`, negative results become zero. If the input is the gradient for the outputs of a ReLU, these are `outputs`;
// otherwise `outputs` is null.
void convolve(const Layer &layer, const float *in, const float *outputs, const Parameters &parameters, bool relu,
              float *out) {
    const bool copied = layer.padding || outputs;
    const Floats wider = copied ? padded(layer, in, outputs, 0) : Floats(0);
    if (copied) in = wider.start;
    const long length = layer.out_row(), out_channel = layer.out_height() * length;
    for (int y = 0; y < layer.out_height(); y++) {
        const float *row = in + (y - layer.padding) * layer.row();
        for (long i = 0, next; i < length; i = next) {
            int vectors = int(std::min<long>(VECTORS, (length - i + LANES - 1) / LANES));
            if (i + vectors * LANES > length) { // at the row's end, compute some floats twice or take fewer vectors
                if (vectors * LANES <= length) i = length - vectors * LANES;
                else vectors--;
            }
            next = i + (vectors ? vectors * LANES : 1);
            const Range rows = layer.rows(y), columns = layer.columns(i, next - 1);
            for (int o = 0; o < layer.outputs; o += OUTPUTS) {
                const auto compute = vectors == 3   ? tile<Vector, 3>
                                     : vectors == 2 ? tile<Vector, 2>
                                     : vectors == 1 ? tile<Vector, 1>
                                                    : tile<float, 1>;
                const float *weights = parameters.weights.start + long(o) * layer.window();
                float *to = out + o * out_channel + y * length + i;
                compute(layer, row + i, weights, parameters.bias.start + o, rows, columns, relu,
                        std::min(OUTPUTS, layer.outputs - o), to, out_channel);
            }
        }
    }
}

// Returns the larger number, or NaN if one of them is NaN.
template <class V> V larger(V one, V other) { return one > other ? one : one != one ? one : other; }

// Returns the largest or the average of a window of 2×2 pixels whose rows begin at `top` and `bottom`.
template <class V> V pooled(const float *top, const float *bottom, int images, bool largest) {
    const V a = load<V>(top), b = load<V>(top + images), c = load<V>(bottom), d = load<V>(bottom + images);
    return largest ? larger(larger(a, b), larger(c, d)) : (a + b + c + d) / 4;
}

// Pools windows of 2×2 pixels: (channels, height, width, images) → (channels, height / 2, width / 2, images).
void pool(const Layer &layer, const float *in, bool largest, float *out) {
    const int images = layer.images;
    for (int c = 0; c < layer.channels; c++)
        for (int y = 0; y + 1 < layer.height; y += 2)
            for (int x = 0; x + 1 < layer.width; x += 2, out += images) {
                const float *top = in + (long(c) * layer.height + y) * layer.row() + long(x) * images;
                const float *bottom = top + layer.row();
                int i = 0;
                for (; i + LANES <= images; i += LANES)
                    store(out + i, pooled<Vector>(top + i, bottom + i, images, largest));
                for (; i < images; i++) out[i] = pooled<float>(top + i, bottom + i, images, largest);
            }
}

} // namespace

// The functions that convolutions.py calls, with arrays in PyTorch's memory.
extern "C" {

// Computes the outputs of a layer: `convolve` with weights and bias as PyTorch has them.
void layer_outputs(const Layer *layer, const float *in, const float *outputs, const float *weights, const float *bias,
                   int relu, float *out) {
    convolve(*layer, in, outputs, Parameters(*layer, weights, bias), relu, out);
}

// Computes the loss's gradients with respect to weights and bias from its gradient with respect to the outputs. If a
// ReLU follows the convolution, `outputs` are those of the ReLU; otherwise `outputs` is null.
void layer_gradients(const Layer *described, const float *in, const float *outputs, const float *out_gradient,
                     float *of_weights, float *of_bias) {
    const Layer &layer = *described;
    const int kernel = layer.kernel, height = layer.height;
    const long length = layer.out_row(), whole = (length + LANES - 1) / LANES * LANES;
    // The last vector of a row reads beyond the row, and multiplies those numbers by zero. After the last row there may
    // be no memory to read: so either all rows are copied, or the last one alone, with zeros after them.
    const bool copied = layer.padding || layer.row() < LANES;
    const long last = copied ? -1 : long(layer.channels) * height - 1;
    const Floats wider = copied ? padded(layer, in, nullptr, LANES) : Zeros(layer.row() + LANES);
    if (copied) in = wider.start;
    else std::copy_n(in + last * layer.row(), layer.row(), wider.start);
    Zeros row(size_t(layer.outputs + OUTPUTS) * whole), biases(layer.outputs * LANES);
    const long output = long(layer.window()) * LANES;
    Zeros sums(size_t(layer.outputs + OUTPUTS) * output);
    for (int y = 0; y < layer.out_height(); y++) {
        for (int o = 0; o < layer.outputs; o++) {
            const long from = (long(o) * layer.out_height() + y) * length;
            copy(out_gradient + from, outputs ? outputs + from : nullptr, length, row.start + o * whole);
            Vector total = load<Vector>(biases.start + o * LANES);
            for (long i = 0; i < whole; i += LANES) total += load<Vector>(row.start + o * whole + i);
            store(biases.start + o * LANES, total);
        }
        const Range rows = layer.rows(y);
        for (int o = 0; o < layer.outputs; o += OUTPUTS)
            for (int c = 0; c < layer.channels; c++)
                for (int k = rows.first; k < rows.end; k++) {
                    const long r = long(c) * height + y - layer.padding + k;
                    const float *from = r == last ? wider.start : in + r * layer.row();
                    float *to = sums.start + o * output + long(c * kernel + k) * kernel * LANES;
                    for (int column = 0, taps; column < kernel; column += taps) {
                        taps = std::min(VECTORS, kernel - column);
                        const auto add = taps == 3   ? weights_of_row<3>
                                         : taps == 2 ? weights_of_row<2>
                                                     : weights_of_row<1>;
                        add(row.start + o * whole, whole, from + long(column) * layer.images, layer.images,
                            to + column * LANES, output);
                    }
                }
    }
    add_up(sums.start, long(layer.outputs) * layer.window(), of_weights);
    add_up(biases.start, layer.outputs, of_bias);
}

// A layer of a network outside training. A fully connected layer is a convolution with a 1×1 kernel on a single pixel,
// after a step that flattens. convolutions.py has the same fields in `StepStruct`.
struct Step {
    enum { CONVOLVE, FLATTEN, LARGEST, AVERAGE } kind;
    int outputs, kernel, padding, relu;
    const float *weights, *bias;
};

// Computes logits (count, classes) of images (count, channels, height, width). One block of images after another passes
// through all layers.
void network_logits(const Step *steps, int length, const float *images, int count, int channels, int height, int width,
                    float *logits) {
    std::vector<Layer> layers; // the sizes of each step's input
    std::vector<Parameters> parameters;
    Layer layer{channels, height, width, 0, 0, 0, 0};
    long most = 0;
    for (const Step *step = steps; step < steps + length; step++) {
        layer = {layer.channels, layer.height, layer.width, 1, step->outputs, step->kernel, step->padding};
        layers.push_back(layer);
        most = std::max(most, long(layer.channels) * layer.height * layer.width);
        parameters.emplace_back(layer, step->weights, step->bias);
        switch (step->kind) {
        case Step::CONVOLVE: layer = {layer.outputs, layer.out_height(), int(layer.out_row()), 1, 0, 0, 0}; break;
        case Step::FLATTEN: layer = {layer.channels * layer.height * layer.width, 1, 1, 1, 0, 0, 0}; break;
        default: layer = {layer.channels, layer.height / 2, layer.width / 2, 1, 0, 0, 0};
        }
    }
    const int classes = layer.channels, pixels = channels * height * width;
    Floats one(std::max(most, long(classes)) * BLOCK), other(std::max(most, long(classes)) * BLOCK);
    for (int first = 0; first < count; first += BLOCK) {
        const int some = std::min(BLOCK, count - first);
        float *in = one.start, *out = other.start;
        for (int p = 0; p < pixels; p++)
            for (int i = 0; i < some; i++) in[long(p) * some + i] = images[long(first + i) * pixels + p];
        for (int s = 0; s < length; s++) {
            layers[s].images = some;
            if (steps[s].kind == Step::FLATTEN) continue;
            if (steps[s].kind == Step::CONVOLVE)
                convolve(layers[s], in, nullptr, parameters[s], steps[s].relu, out);
            else pool(layers[s], in, steps[s].kind == Step::LARGEST, out);
            std::swap(in, out);
        }
        for (int i = 0; i < some; i++)
            for (int c = 0; c < classes; c++) logits[long(first + i) * classes + c] = in[long(c) * some + i];
    }
}

} // extern "C"
