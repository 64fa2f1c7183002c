// The format with eight bits of precision, as far as CuPy's own header uses it: rounded to the nearest even.
#pragma once
struct __nv_bfloat16 {
    unsigned short x;
    __nv_bfloat16() : x(0) {}
    __nv_bfloat16(float value) {
        const unsigned bits = __float_as_uint(value);
        x = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    }
    operator float() const { return __uint_as_float((unsigned)x << 16); }
};
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 value;
    value.x = bits;
    return value;
}
