// Device memory: an arena for each device, in which every allocation is followed by a red zone.
//
// Fresh and freed memory is poisoned: as a float each of its elements is not a number. A red zone that has changed when
// its allocation is freed says that something wrote past the end. Guarded, an arena cannot be touched but by work of
// its device, so that host code which does gets a signal, and so does work of another device. Pinned memory of the host
// is poisoned, too.
#include "common.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <set>

#include <sys/mman.h>

namespace emulated {
namespace {

constexpr std::size_t kRedZone = 256, kAlignment = 512, kPage = 4096;
constexpr int kPoison = 0xFF;
constexpr unsigned char kRed = 0xA5;

std::size_t rounded_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

std::size_t taken_by(std::size_t bytes) { return rounded_up(bytes + kRedZone, kAlignment); }

class Arena {
  public:
    bool holds(const void* address) const {
        const auto* at = static_cast<const char*>(address);
        return base_ && at >= base_ && at < base_ + top_;
    }

    std::size_t free_bytes() const { return options().memory_bytes - used_; }

    void protect(bool is_open) const {
        if (base_ && top_) mprotect(base_, rounded_up(top_, kPage), is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }

    void* allocate(std::size_t bytes) {
        const std::size_t taken = taken_by(bytes);
        if (taken > free_bytes() || !map()) return nullptr;
        const std::size_t offset = place_for(taken);
        if (offset == kNowhere) return nullptr;
        live_[offset] = bytes;
        used_ += taken;
        Access access;
        protect(true);
        if (options().is_poisoned) std::memset(base_ + offset, kPoison, bytes);
        std::memset(base_ + offset + bytes, kRed, taken - bytes);
        return base_ + offset;
    }

    bool release(void* address) {
        const std::size_t offset = static_cast<char*>(address) - base_;
        const auto found = live_.find(offset);
        if (found == live_.end()) return false;
        const std::size_t bytes = found->second, taken = taken_by(bytes);
        Access access;
        check_red_zone(offset, bytes, taken);
        if (options().is_poisoned) std::memset(base_ + offset, kPoison, bytes);
        live_.erase(found);
        used_ -= taken;
        add_gap(offset, taken);
        return true;
    }

  private:
    static constexpr std::size_t kNowhere = SIZE_MAX;

    bool map() {
        if (base_) return true;
        const int access = options().is_guarded ? PROT_NONE : PROT_READ | PROT_WRITE;
        // Reserved only: a page costs memory once it is touched.
        void* found = mmap(nullptr, options().memory_bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) return false;
        base_ = static_cast<char*>(found);
        return true;
    }

    std::size_t place_for(std::size_t taken) {
        for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap) {
            if (gap->second < taken) continue;
            const std::size_t offset = gap->first, rest = gap->second - taken;
            gaps_.erase(gap);
            if (rest) gaps_[offset + taken] = rest;
            return offset;
        }
        // At the end, with the gap that may be the last thing before it.
        const bool ends_with_gap = !gaps_.empty() && std::prev(gaps_.end())->first + std::prev(gaps_.end())->second == top_;
        const std::size_t offset = ends_with_gap ? std::prev(gaps_.end())->first : top_;
        if (offset + taken > options().memory_bytes) return kNowhere;
        if (ends_with_gap) gaps_.erase(std::prev(gaps_.end()));
        top_ = offset + taken;
        return offset;
    }

    void check_red_zone(std::size_t offset, std::size_t bytes, std::size_t taken) const {
        for (std::size_t at = bytes; at < taken; ++at) {
            if (static_cast<unsigned char>(base_[offset + at]) == kRed) continue;
            std::fprintf(stderr, "emulated GPU: OUT-OF-BOUNDS WRITE, %zu bytes past the end of an array of %zu bytes\n",
                         at - bytes, bytes);
            std::abort();
        }
    }

    void add_gap(std::size_t offset, std::size_t taken) {
        auto gap = gaps_.emplace(offset, taken).first;
        const auto next = std::next(gap);
        if (next != gaps_.end() && gap->first + gap->second == next->first) {
            gap->second += next->second;
            gaps_.erase(next);
        }
        if (gap == gaps_.begin()) return;
        const auto before = std::prev(gap);
        if (before->first + before->second == gap->first) {
            before->second += gap->second;
            gaps_.erase(gap);
        }
    }

    char* base_ = nullptr;
    std::size_t top_ = 0, used_ = 0;
    std::map<std::size_t, std::size_t> gaps_, live_;  // offset to bytes
};

std::vector<Arena>& arenas() {
    static std::vector<Arena> all(n_devices());
    return all;
}


std::map<const char*, std::size_t>& pinned() {
    static std::map<const char*, std::size_t> all;
    return all;
}

// Which device's memory another one may use.
std::set<std::pair<int, int>>& peers() {
    static std::set<std::pair<int, int>> all;
    return all;
}

std::vector<int>& n_accesses() {
    static std::vector<int> of_devices(n_devices());
    return of_devices;
}

bool may_use(int device, int memory_of) {
    return device == kEveryDevice || device == memory_of || peers().count({device, memory_of});
}

}  // namespace

void allow_peer(int device, int peer, bool is_allowed) {
    if (is_allowed) {
        peers().emplace(device, peer);
    } else {
        peers().erase({device, peer});
    }
}

Access::Access(int device) : device_(device) {
    if (!options().is_guarded) return;
    for (int each = 0; each < n_devices(); ++each) {
        if (may_use(device_, each) && n_accesses()[each]++ == 0) arenas()[each].protect(true);
    }
}

// Peers do not change while work of a device runs.
Access::~Access() {
    if (!options().is_guarded) return;
    for (int each = 0; each < n_devices(); ++each) {
        if (may_use(device_, each) && --n_accesses()[each] == 0) arenas()[each].protect(false);
    }
}

int device_of(const void* address) {
    for (int device = 0; device < n_devices(); ++device) {
        if (arenas()[device].holds(address)) return device;
    }
    return kNoDeviceHere;
}

bool is_pinned(const void* address) {
    auto after = pinned().upper_bound(static_cast<const char*>(address));
    if (after == pinned().begin()) return false;
    const auto& [start, bytes] = *std::prev(after);
    return static_cast<const char*>(address) < start + bytes;
}

}  // namespace emulated

using namespace emulated;

EXPORTED Error hipMalloc(void** address, std::size_t bytes) {
    Locked locked;
    ++counters().allocations;
    *address = nullptr;
    if (!bytes) return kSuccess;
    if (!n_devices()) return fail(kNoDevice);
    *address = arenas()[current_device()].allocate(bytes);
    return *address ? kSuccess : fail(kOutOfMemory);
}

EXPORTED Error hipFree(void* address) {
    Locked locked;
    if (!address) return kSuccess;
    const int device = device_of(address);
    if (device == kNoDeviceHere) return fail(kInvalidValue, "hipFree of what is no device memory");
    run_device(device);
    return arenas()[device].release(address) ? kSuccess : fail(kInvalidValue, "hipFree of what is no allocation");
}

EXPORTED Error hipMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
    Locked locked;
    if (!n_devices()) return fail(kNoDevice);
    *total_bytes = options().memory_bytes;
    *free_bytes = arenas()[current_device()].free_bytes();
    return kSuccess;
}

EXPORTED Error hipHostMalloc(void** address, std::size_t bytes, unsigned) {
    Locked locked;
    *address = std::malloc(bytes ? bytes : 1);
    if (!*address) return fail(kOutOfMemory);
    if (options().is_poisoned) std::memset(*address, kPoison, bytes);
    pinned()[static_cast<const char*>(*address)] = bytes;
    return kSuccess;
}

EXPORTED Error hipHostFree(void* address) {
    Locked locked;
    for (int device = 0; device < n_devices(); ++device) run_device(device);
    pinned().erase(static_cast<const char*>(address));
    std::free(address);
    return kSuccess;
}

EXPORTED Error hipMallocManaged(void** address, std::size_t bytes, unsigned) {
    return hipHostMalloc(address, bytes, 0);
}

struct PointerAttributes {
    int kind;  // 0 unknown to the runtime, 1 host, 2 device
    int device;
    void *on_device, *on_host;
    int is_managed;
    unsigned flags;
};

EXPORTED Error hipPointerGetAttributes(PointerAttributes* attributes, const void* address) {
    Locked locked;
    *attributes = PointerAttributes{0, -2, nullptr, nullptr, 0, 0};
    auto* const at = const_cast<void*>(address);
    const int device = device_of(address);
    if (device != kNoDeviceHere) {
        *attributes = PointerAttributes{2, device, at, nullptr, 0, 0};
    } else if (is_pinned(address)) {
        *attributes = PointerAttributes{1, current_device(), at, at, 0, 0};
    }
    return kSuccess;
}
