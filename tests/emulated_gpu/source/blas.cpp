// Stands in for the linear algebra library: what CuPy's matmul, dot and tensordot call, in plain loops.
//
// Matrices are column by column, as in every BLAS. Each call is one launch on the stream of its handle.
#include <algorithm>
#include <complex>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

extern "C" void emulated_gpu_enqueue(void* stream, std::function<void()>* work);
extern "C" int emulated_gpu_is_device(const void* address);
extern "C" int emulated_gpu_is_capturing(void* stream);

namespace {

constexpr int kSuccess = 0, kNotSupported = 7, kInvalidValue = 11;
constexpr int kPlain = 111, kConjugate = 113;
constexpr int kFloat = 0, kDouble = 1, kHalf = 2;  // of hipDataType

struct Handle {
    void* stream = nullptr;
    int pointer_mode = 0;  // 1: scalars lie on the device
};

template <class Part>
struct Matrix {
    const Part* at;
    int lead, form;

    template <class Number>
    Number value(std::size_t row, std::size_t column) const {
        const bool is_plain = form == kPlain;
        const Number found = static_cast<Number>(is_plain ? at[row + column * lead] : at[column + row * lead]);
        if constexpr (std::is_same_v<Number, std::complex<float>> || std::is_same_v<Number, std::complex<double>>) {
            return form == kConjugate ? std::conj(found) : found;
        } else {
            return found;
        }
    }
};

// A scalar that is read when the work runs, from wherever it lies; one on the host is read at the call.
template <class Number>
std::function<Number()> scalar(const Handle* handle, const Number* at) {
    if (handle->pointer_mode) return [at] { return *at; };
    return [value = *at] { return value; };
}

bool are_on_device(std::initializer_list<const void*> addresses) {
    const bool are = std::all_of(addresses.begin(), addresses.end(),
                                 [](const void* each) { return !each || emulated_gpu_is_device(each); });
    if (!are) std::fprintf(stderr, "emulated GPU: linear algebra was given a host address\n");
    return are;
}

int launch(const Handle* handle, std::function<void()> work) {
    emulated_gpu_enqueue(handle->stream, &work);
    return kSuccess;
}

// Column by column of the result, with the left matrix packed first: the inner loop goes over adjacent numbers.
template <class Part, class Number>
void multiply(int n_rows, int n_columns, int n_inner, Number alpha, Matrix<Part> left, Matrix<Part> right, Number beta,
              Part* result, int lead) {
    std::vector<Number> packed(static_cast<std::size_t>(n_rows) * n_inner), sums(n_rows);
    for (int inner = 0; inner < n_inner; ++inner) {
        for (int row = 0; row < n_rows; ++row) {
            packed[static_cast<std::size_t>(inner) * n_rows + row] = left.template value<Number>(row, inner);
        }
    }
    for (int column = 0; column < n_columns; ++column) {
        std::fill(sums.begin(), sums.end(), Number(0));
        for (int inner = 0; inner < n_inner; ++inner) {
            const Number factor = right.template value<Number>(inner, column);
            const Number* part = &packed[static_cast<std::size_t>(inner) * n_rows];
            for (int row = 0; row < n_rows; ++row) sums[row] += part[row] * factor;
        }
        Part* into = result + static_cast<std::size_t>(column) * lead;
        for (int row = 0; row < n_rows; ++row) {
            // What the result held does not count where its factor is zero, not even if it is not a number.
            const Number kept = beta == Number(0) ? Number(0) : beta * static_cast<Number>(into[row]);
            into[row] = static_cast<Part>(alpha * sums[row] + kept);
        }
    }
}

template <class Part, class Number>
int gemm(const Handle* handle, int left_form, int right_form, int n_rows, int n_columns, int n_inner,
         const Number* alpha, const Part* left, int left_lead, long long left_step, const Part* right, int right_lead,
         long long right_step, const Number* beta, Part* result, int lead, long long step, int n_products) {
    if (!are_on_device({left, right, result})) return kInvalidValue;
    return launch(handle, [=, alpha_of = scalar(handle, alpha), beta_of = scalar(handle, beta)] {
        for (int each = 0; each < n_products; ++each) {
            multiply<Part, Number>(n_rows, n_columns, n_inner, alpha_of(), {left + each * left_step, left_lead, left_form},
                                   {right + each * right_step, right_lead, right_form}, beta_of(), result + each * step,
                                   lead);
        }
    });
}

template <class Number>
int gemv(const Handle* handle, int form, int n_rows, int n_columns, const Number* alpha, const Number* matrix, int lead,
         const Number* vector, int stride, const Number* beta, Number* result, int result_stride) {
    if (!are_on_device({matrix, vector, result})) return kInvalidValue;
    const int n_results = form == kPlain ? n_rows : n_columns, n_inner = form == kPlain ? n_columns : n_rows;
    return launch(handle, [=, alpha_of = scalar(handle, alpha), beta_of = scalar(handle, beta)] {
        const Matrix<Number> whole{matrix, lead, form};
        const Number factor = alpha_of(), kept = beta_of();
        for (int each = 0; each < n_results; ++each) {
            Number sum(0);
            for (int inner = 0; inner < n_inner; ++inner) {
                sum += whole.template value<Number>(each, inner) * vector[static_cast<std::size_t>(inner) * stride];
            }
            Number& into = result[static_cast<std::size_t>(each) * result_stride];
            into = kept == Number(0) ? factor * sum : factor * sum + kept * into;
        }
    });
}

template <class Number>
int ger(const Handle* handle, int n_rows, int n_columns, const Number* alpha, const Number* left, int left_stride,
        const Number* right, int right_stride, Number* matrix, int lead) {
    if (!are_on_device({left, right, matrix})) return kInvalidValue;
    return launch(handle, [=, alpha_of = scalar(handle, alpha)] {
        const Number factor = alpha_of();
        for (int column = 0; column < n_columns; ++column) {
            for (int row = 0; row < n_rows; ++row) {
                matrix[row + static_cast<std::size_t>(column) * lead] +=
                    factor * left[static_cast<std::size_t>(row) * left_stride] *
                    right[static_cast<std::size_t>(column) * right_stride];
            }
        }
    });
}

template <class Number>
int dot(const Handle* handle, int length, const Number* left, int left_stride, const Number* right, int right_stride,
        Number* result) {
    if (!are_on_device({left, right})) return kInvalidValue;
    return launch(handle, [=] {
        Number sum(0);
        for (int each = 0; each < length; ++each) {
            sum += left[static_cast<std::size_t>(each) * left_stride] *
                   right[static_cast<std::size_t>(each) * right_stride];
        }
        *result = sum;
    });
}

}  // namespace

EXPORTED int hipblasCreate(Handle** handle) {
    *handle = new Handle;
    return kSuccess;
}

EXPORTED int hipblasDestroy(Handle* handle) {
    delete handle;
    return kSuccess;
}

// CuPy refuses cuBLAS on a stream that is captured, by itself and on NVIDIA only; so it is refused here.
EXPORTED int hipblasSetStream(Handle* handle, void* stream) {
    if (emulated_gpu_is_capturing(stream)) {
        std::fprintf(stderr, "emulated GPU: linear algebra on a stream that is captured\n");
        return kNotSupported;
    }
    handle->stream = stream;
    return kSuccess;
}

EXPORTED int hipblasGetStream(Handle* handle, void** stream) {
    *stream = handle->stream;
    return kSuccess;
}

EXPORTED int hipblasSetPointerMode(Handle* handle, int mode) {
    handle->pointer_mode = mode;
    return kSuccess;
}

EXPORTED int hipblasGetPointerMode(Handle* handle, int* mode) {
    *mode = handle->pointer_mode;
    return kSuccess;
}

// One letter for each type of number, as in every BLAS.
#define FOR_TYPE(letter, Number)                                                                                       \
    EXPORTED int hipblas##letter##gemm(Handle* handle, int left_form, int right_form, int m, int n, int k,             \
                                       const Number* alpha, const Number* left, int left_lead, const Number* right,    \
                                       int right_lead, const Number* beta, Number* result, int lead) {                 \
        return gemm<Number, Number>(handle, left_form, right_form, m, n, k, alpha, left, left_lead, 0, right,          \
                                    right_lead, 0, beta, result, lead, 0, 1);                                          \
    }                                                                                                                  \
    EXPORTED int hipblas##letter##gemmStridedBatched(                                                                  \
        Handle* handle, int left_form, int right_form, int m, int n, int k, const Number* alpha, const Number* left,   \
        int left_lead, long long left_step, const Number* right, int right_lead, long long right_step,                 \
        const Number* beta, Number* result, int lead, long long step, int n_products) {                                \
        return gemm<Number, Number>(handle, left_form, right_form, m, n, k, alpha, left, left_lead, left_step, right,  \
                                    right_lead, right_step, beta, result, lead, step, n_products);                     \
    }                                                                                                                  \
    EXPORTED int hipblas##letter##gemv(Handle* handle, int form, int m, int n, const Number* alpha,                    \
                                       const Number* matrix, int lead, const Number* vector, int stride,               \
                                       const Number* beta, Number* result, int result_stride) {                        \
        return gemv<Number>(handle, form, m, n, alpha, matrix, lead, vector, stride, beta, result, result_stride);     \
    }

#define FOR_REAL_TYPE(letter, Number)                                                                                  \
    EXPORTED int hipblas##letter##ger(Handle* handle, int m, int n, const Number* alpha, const Number* left,           \
                                      int left_stride, const Number* right, int right_stride, Number* matrix,          \
                                      int lead) {                                                                      \
        return ger<Number>(handle, m, n, alpha, left, left_stride, right, right_stride, matrix, lead);                 \
    }                                                                                                                  \
    EXPORTED int hipblas##letter##dot(Handle* handle, int length, const Number* left, int left_stride,                 \
                                      const Number* right, int right_stride, Number* result) {                         \
        return dot<Number>(handle, length, left, left_stride, right, right_stride, result);                            \
    }

FOR_TYPE(S, float)
FOR_TYPE(D, double)
FOR_TYPE(C, std::complex<float>)
FOR_TYPE(Z, std::complex<double>)
FOR_REAL_TYPE(S, float)
FOR_REAL_TYPE(D, double)

EXPORTED int hipblasGemmEx(Handle* handle, int left_form, int right_form, int m, int n, int k, const void* alpha,
                           const void* left, int left_type, int left_lead, const void* right, int right_type,
                           int right_lead, const void* beta, void* result, int type, int lead, int, int) {
    const auto as = [&](auto part, auto number) {
        using Part = decltype(part);
        using Number = decltype(number);
        return gemm<Part, Number>(handle, left_form, right_form, m, n, k, static_cast<const Number*>(alpha),
                                  static_cast<const Part*>(left), left_lead, 0, static_cast<const Part*>(right),
                                  right_lead, 0, static_cast<const Number*>(beta), static_cast<Part*>(result), lead, 0,
                                  1);
    };
    const bool are_alike = left_type == type && right_type == type;
    if (are_alike && type == kFloat) return as(float(), float());
    if (are_alike && type == kDouble) return as(double(), double());
    if (are_alike && type == kHalf) return as(_Float16(), float());
    std::fprintf(stderr, "emulated GPU: no product of types %d and %d into %d\n", left_type, right_type, type);
    return kNotSupported;
}

EXPORTED int hipblasGemmStridedBatchedEx(Handle* handle, int left_form, int right_form, int m, int n, int k,
                                         const void* alpha, const void* left, int left_type, int left_lead,
                                         long long left_step, const void* right, int right_type, int right_lead,
                                         long long right_step, const void* beta, void* result, int type, int lead,
                                         long long step, int n_products, int, int) {
    const auto as = [&](auto number) {
        using Number = decltype(number);
        return gemm<Number, Number>(handle, left_form, right_form, m, n, k, static_cast<const Number*>(alpha),
                                    static_cast<const Number*>(left), left_lead, left_step,
                                    static_cast<const Number*>(right), right_lead, right_step,
                                    static_cast<const Number*>(beta), static_cast<Number*>(result), lead, step,
                                    n_products);
    };
    const bool are_alike = left_type == type && right_type == type;
    if (are_alike && type == kFloat) return as(float());
    if (are_alike && type == kDouble) return as(double());
    std::fprintf(stderr, "emulated GPU: no products of types %d and %d into %d\n", left_type, right_type, type);
    return kNotSupported;
}
