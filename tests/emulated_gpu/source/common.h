// What the parts of the emulated device share: options, error codes, the lock, and what one part calls of another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace emulated {

// The values of hipError_t that are given back.
using Error = int;
constexpr Error kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidConfiguration = 9, kNoDevice = 100,
                kInvalidDevice = 101, kInvalidImage = 200, kNotFound = 500, kNotReady = 600, kLaunchFailure = 719,
                kNotSupported = 801, kCaptureUnsupported = 900, kCaptureInvalid = 901;

enum class Order { kForward = 0, kReverse = 1, kShuffle = 2 };

// From the environment; see README.md.
struct Options {
    bool is_deferred, is_guarded, is_poisoned;
    Order order;
    unsigned seed;
    std::size_t memory_bytes;
    std::vector<int> devices;  // those that are visible, by their number on the machine
    std::string record;        // the folder for the sources of all kernels that are used; empty: they are not kept
};
const Options& options();

// One lock for everything: work of two host threads never overlaps, which a real device does not promise either.
class Locked {
  public:
    Locked();

  private:
    std::lock_guard<std::recursive_mutex> guard_;
};

// Devices and errors.
int n_devices();
int& current_device();
// Keeps the error for hipGetLastError and says on standard error what was wrong, but for what callers only poll.
Error fail(Error error, const std::string& why = "");
// A launch that failed is told by the next call that waits, as on a device.
void note_failed_launch(Error error);
Error take_failed_launch();

// Counters, read by tests/emulated_gpu/counters.py in this order.
struct Counters {
    long launches = 0, waits = 0, allocations = 0;
    long copies_to_device = 0, copies_to_host = 0, copies_within = 0;
    long bytes_to_device = 0, bytes_to_host = 0, bytes_within = 0;
};
Counters& counters();

// Memory. While an Access lives this process may touch the memory of a device, whose work it does, and of the devices
// whose memory that one was allowed to use; or of every device, where none is named.
constexpr int kNoDeviceHere = -1, kEveryDevice = -1;
class Access {
  public:
    explicit Access(int device = kEveryDevice);
    ~Access();
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

  private:
    int device_;
};
void allow_peer(int device, int peer, bool is_allowed);
int device_of(const void* address);
bool is_pinned(const void* address);

// Streams.
using Work = std::function<void()>;
struct Graph {
    std::vector<Work> work;
};
struct Stream;
Stream* stream_of(void* handle);
int device_of_stream(const Stream* stream);
bool is_capturing(const Stream* stream);
// Put work at the end of a stream, or into the graph that it captures; gives the number to wait for.
std::uint64_t enqueue(Stream* stream, Work work);
void run_until(Stream* stream, std::uint64_t number);
void run_device(int device);

}  // namespace emulated
