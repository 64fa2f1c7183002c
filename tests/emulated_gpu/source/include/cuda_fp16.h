// Half precision, as far as CuPy's own header uses it.
#pragma once
struct __half_raw {
    unsigned short x;
};
struct half {
    unsigned short x;
    half() : x(0) {}
    half(float value) : x(__float2half_rn(value)) {}
    half(const __half_raw& raw) : x(raw.x) {}
    template <class Number, class = std::enable_if_t<std::is_arithmetic<Number>::value>>
    explicit half(Number value) : x(__float2half_rn((float)value)) {}
    operator float() const { return __half2float(x); }
    operator __half_raw() const { return {x}; }
};
typedef half __half;
static inline unsigned short __half_as_ushort(half value) { return value.x; }
static inline half __ushort_as_half(unsigned short bits) { return half(__half_raw{bits}); }
