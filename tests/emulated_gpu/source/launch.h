// What a compiled kernel and whoever launches it agree on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulated {

struct Launch {
    unsigned grid[3], block[3];
    std::size_t shared_bytes;
    int order;  // 0 forward, 1 reverse, 2 shuffled by the seed
    unsigned seed;
    bool is_poisoned;
    const char* error;
};

constexpr char kImageMagic[] = "EMUGPU02";
constexpr char kRunPrefix[] = "emulated_gpu_run_", kSizesPrefix[] = "emulated_gpu_sizes_";

// What is before an image: the shared library, and after it the source that it was made of.
struct ImageHeader {
    char magic[8];
    std::uint64_t n_bytes, n_source_bytes;
};

}  // namespace emulated
