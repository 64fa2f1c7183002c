// Devices, errors and counters.
#include "common.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace emulated {
namespace {

constexpr int kVersion = 70051831;  // of the runtime that the wheel was built with
constexpr int kMostDevices = 16;

long number_of(const char* name, long otherwise) {
    const char* value = std::getenv(name);
    return value && *value ? std::atol(value) : otherwise;
}

// As CUDA and HIP read them: numbers in the order in which they are to be counted, up to the first that is none.
std::vector<int> visible(std::vector<int> devices, const char* variable) {
    const char* listed = std::getenv(variable);
    if (!listed) return devices;
    std::vector<int> chosen;
    std::stringstream words(listed);
    for (std::string word; std::getline(words, word, ',');) {
        char* end = nullptr;
        const long number = std::strtol(word.c_str(), &end, 10);
        if (end == word.c_str() || number < 0 || number >= static_cast<long>(devices.size())) break;
        chosen.push_back(devices[number]);
    }
    return chosen;
}

Order order_of(const char* value) {
    if (!value || !*value) return Order::kForward;
    if (!std::strcmp(value, "reverse")) return Order::kReverse;
    if (!std::strcmp(value, "shuffle")) return Order::kShuffle;
    std::fprintf(stderr, "emulated GPU: EMULATED_GPU_ORDER is reverse or shuffle, found %s\n", value);
    std::abort();
}

Options read_options() {
    Options read;
    read.is_deferred = number_of("EMULATED_GPU_DEFER", 0) != 0;
    read.is_guarded = number_of("EMULATED_GPU_GUARD", 0) != 0;
    read.is_poisoned = number_of("EMULATED_GPU_POISON", 1) != 0;
    read.order = order_of(std::getenv("EMULATED_GPU_ORDER"));
    read.seed = static_cast<unsigned>(number_of("EMULATED_GPU_SEED", 1));
    read.memory_bytes = static_cast<std::size_t>(number_of("EMULATED_GPU_MEMORY_MB", 8192)) << 20;
    const char* record = std::getenv("EMULATED_GPU_RECORD");
    read.record = record ? record : "";
    const long n_devices = std::min<long>(number_of("EMULATED_GPU_DEVICES", 1), kMostDevices);
    for (int device = 0; device < n_devices; ++device) read.devices.push_back(device);
    // HIP takes either name, its own before the other.
    const bool has_own = std::getenv("HIP_VISIBLE_DEVICES") != nullptr;
    read.devices = visible(read.devices, has_own ? "HIP_VISIBLE_DEVICES" : "CUDA_VISIBLE_DEVICES");
    return read;
}

thread_local int chosen_device = 0;
thread_local Error last_error = kSuccess;
Error failed_launch = kSuccess;

const char* name_of(Error error) {
    switch (error) {
        case kSuccess: return "hipSuccess";
        case kInvalidValue: return "hipErrorInvalidValue";
        case kOutOfMemory: return "hipErrorOutOfMemory";
        case kInvalidConfiguration: return "hipErrorInvalidConfiguration";
        case kNoDevice: return "hipErrorNoDevice";
        case kInvalidDevice: return "hipErrorInvalidDevice";
        case kInvalidImage: return "hipErrorInvalidImage";
        case kNotFound: return "hipErrorNotFound";
        case kNotReady: return "hipErrorNotReady";
        case kLaunchFailure: return "hipErrorLaunchFailure";
        case kNotSupported: return "hipErrorNotSupported";
        case kCaptureUnsupported: return "hipErrorStreamCaptureUnsupported";
        case kCaptureInvalid: return "hipErrorStreamCaptureInvalidated";
        default: return "hipErrorUnknown";
    }
}

std::recursive_mutex& mutex() {
    static std::recursive_mutex the_one;
    return the_one;
}

}  // namespace

const Options& options() {
    static const Options read = read_options();
    return read;
}

Locked::Locked() : guard_(mutex()) {}

int n_devices() { return static_cast<int>(options().devices.size()); }

int& current_device() { return chosen_device; }

Error fail(Error error, const std::string& why) {
    last_error = error;
    if (!why.empty()) std::fprintf(stderr, "emulated GPU: %s: %s\n", name_of(error), why.c_str());
    return error;
}

void note_failed_launch(Error error) { failed_launch = error; }

Error take_failed_launch() {
    const Error error = failed_launch;
    failed_launch = kSuccess;
    return error;
}

Counters& counters() {
    static Counters counted;
    return counted;
}

}  // namespace emulated

using namespace emulated;

EXPORTED void emulated_gpu_counters(long* into) {
    Locked locked;
    std::memcpy(into, &counters(), sizeof(Counters));
}

EXPORTED Error hipGetDeviceCount(int* count) {
    *count = n_devices();
    return n_devices() ? kSuccess : fail(kNoDevice);
}

EXPORTED Error hipGetDevice(int* device) {
    *device = current_device();
    return kSuccess;
}

EXPORTED Error hipSetDevice(int device) {
    if (device < 0 || device >= n_devices()) return fail(kInvalidDevice);
    current_device() = device;
    return kSuccess;
}

EXPORTED Error hipDeviceGetAttribute(int* value, int attribute, int) {
    // The compute capability, by which CuPy chooses what to compile: 9.0. Sizes of grids and blocks are generous.
    constexpr int kMajor = 23, kMinor = 61;
    *value = attribute == kMajor ? 9 : attribute == kMinor ? 0 : 1024;
    return kSuccess;
}

// The offsets are those of hipDeviceProp_tR0600, in the header of the wheel's version.
EXPORTED Error hipGetDevicePropertiesR0600(char* properties, int device) {
    if (device < 0 || device >= n_devices()) return fail(kInvalidDevice);
    std::memset(properties, 0, 1472);
    // A model, which all devices are of.
    std::snprintf(properties, 256, "emulated GPU");
    const auto put_size = [&](int offset, std::size_t value) { std::memcpy(properties + offset, &value, sizeof value); };
    const auto put = [&](int offset, int value) { std::memcpy(properties + offset, &value, sizeof value); };
    put_size(288, options().memory_bytes);  // totalGlobalMem
    put_size(296, 49152);                   // sharedMemPerBlock
    put(304, 65536);                        // regsPerBlock
    put(308, 32);                           // warpSize
    put(320, 1024);                         // maxThreadsPerBlock
    for (int axis = 0; axis < 2; ++axis) put(324 + 4 * axis, 1024);  // maxThreadsDim
    put(332, 64);
    put(336, 2147483647);  // maxGridSize
    for (int axis = 0; axis < 2; ++axis) put(340 + 4 * axis, 65535);
    put(360, 9);  // major
    put(388, 8);  // multiProcessorCount
    return kSuccess;
}

EXPORTED Error hipDeviceCanAccessPeer(int* can, int device, int peer) {
    *can = device != peer;
    return kSuccess;
}

EXPORTED Error hipDeviceEnablePeerAccess(int peer, unsigned) {
    Locked locked;
    allow_peer(current_device(), peer, true);
    return kSuccess;
}

EXPORTED Error hipDeviceDisablePeerAccess(int peer) {
    Locked locked;
    allow_peer(current_device(), peer, false);
    return kSuccess;
}

EXPORTED Error hipDeviceGetByPCIBusId(int* device, const char* bus) {
    const int number = std::atoi(bus + 5);
    for (int each = 0; each < n_devices(); ++each) {
        if (options().devices[each] == number) {
            *device = each;
            return kSuccess;
        }
    }
    return fail(kInvalidDevice);
}

EXPORTED Error hipDeviceGetPCIBusId(char* bus, int length, int device) {
    if (device < 0 || device >= n_devices()) return fail(kInvalidDevice);
    std::snprintf(bus, length, "0000:%02d:00.0", options().devices[device]);
    return kSuccess;
}

EXPORTED Error hipDeviceGetLimit(std::size_t* value, int) {
    *value = 1 << 20;
    return kSuccess;
}

EXPORTED Error hipDriverGetVersion(int* version) {
    *version = kVersion;
    return kSuccess;
}

EXPORTED Error hipRuntimeGetVersion(int* version) {
    *version = kVersion;
    return kSuccess;
}

EXPORTED Error hipGetLastError() {
    const Error error = last_error;
    last_error = kSuccess;
    return error;
}

EXPORTED Error hipPeekAtLastError() { return last_error; }

EXPORTED const char* hipGetErrorName(Error error) { return name_of(error); }

EXPORTED const char* hipGetErrorString(Error error) { return name_of(error); }
